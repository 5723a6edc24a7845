"""An S3 server on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

application = cache(create_backend_app)


def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """Answer a request as S3, or as moto's own API; moto's server searches its folders for it."""
    service = "moto_api" if environ["PATH_INFO"].startswith("/moto-api/") else "s3"
    return application(service)(environ, start_response)


class S3Server:
    """A server that runs from the beginning until `stop`, at `url`.

    :param answer: the WSGI application
    """

    def __init__(self, answer: Callable[..., Any] = answer) -> None:
        self._server = make_server(
            "127.0.0.1", 0, answer, threaded=True, request_handler=_QuietHandler
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Stop it, and wait until it has stopped."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _QuietHandler(WSGIRequestHandler):
    """A handler that logs no requests: Airflow's logging takes longer than some answers."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""
