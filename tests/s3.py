"""An S3 server on a real socket."""

from __future__ import annotations

from moto.server import ThreadedMotoServer


class S3Server(ThreadedMotoServer):
    """A server that runs from the beginning until `stop`, at `url`."""

    def __init__(self) -> None:
        super().__init__(ip_address="127.0.0.1", port=0, verbose=False)
        self.start()
        # moto's own method for it is newer than what Airflow's constraints pin.
        assert self._server is not None
        self.url = f"http://127.0.0.1:{self._server.server_port}"
