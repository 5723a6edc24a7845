"""An S3 server on a real socket."""

from __future__ import annotations

from moto.server import ThreadedMotoServer


class S3Server(ThreadedMotoServer):  # type: ignore[misc]
    """A server that runs from the beginning until `stop`, at `url`."""

    def __init__(self) -> None:
        super().__init__(ip_address="127.0.0.1", port=0, verbose=False)
        self.start()
        # moto's own method for it is newer than Airflow's constraints.
        host, port = self._server.server_address[:2]
        self.url = f"http://{host}:{port}"
