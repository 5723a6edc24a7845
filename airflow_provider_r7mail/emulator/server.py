"""The server on a socket: uvicorn in a thread, started and stopped at will."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from airflow_provider_r7mail.emulator.app import OnRequest, Service, create_app
from airflow_provider_r7mail.emulator.faults import CONNECTION
from airflow_provider_r7mail.emulator.mailbox import Mailbox
from airflow_provider_r7mail.emulator.readings import Faults, Readings

if TYPE_CHECKING:
    from types import TracebackType

    from starlette.types import Receive, Scope, Send

_START_SECONDS = 10
_STOP_SECONDS = 5


class Emulator:
    """A local R7-Office mail server. Use it as a context manager, or call `start` and `stop`.

    :param mail: the mailbox to serve, or the path of one (see `Mailbox.load`); the built-in
        office's mail when None.
    :param readings: how the server reads the manual's open points.
    :param port: the port to listen on; 0 finds a free one.
    :param on_request: called with the record of each call just before it is answered, in the
        server's thread: it may change the mailbox, and must not call the server.
    :param host: the address to listen on.
    """

    def __init__(
        self,
        mail: Mailbox | str | Path | None = None,
        readings: Readings | None = None,
        port: int = 0,
        on_request: OnRequest | None = None,
        *,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.port = port
        self._mail = mail
        self._readings = readings or Readings()
        self._on_request = on_request
        self._running: tuple[_Server, threading.Thread] | None = None
        self._served: Service | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Load the mail and listen; return once calls are answered.

        :raises OSError: the port is taken, or there is no mail at the path.
        :raises ValueError: what is at the path is no mail.
        """
        if self._running is not None:
            raise RuntimeError("the server is running already")
        listener = _listen(self.host, self.port)
        try:
            self._served = self._load()
        except BaseException:
            listener.close()
            raise
        self.port = listener.getsockname()[1]
        server = _Server(self._served, self.host)
        thread = threading.Thread(
            target=server.run, args=([listener],), name="r7mail-emulator", daemon=True
        )
        thread.start()
        if not server.ready.wait(_START_SECONDS):
            raise RuntimeError("the server did not start")
        self._running = server, thread

    def stop(self) -> None:
        """Break off what is being answered, close everything, and end the thread."""
        if self._running is None:
            return
        server, thread = self._running
        self._running = None
        server.stop()
        thread.join(_STOP_SECONDS)

    def _load(self) -> Service:
        mail = self._mail
        if isinstance(mail, Mailbox):
            return Service(mail, self._readings, on_request=self._on_request)

        def source() -> Mailbox:
            if mail is None:
                return Mailbox.office()
            loaded = Mailbox()
            loaded.load(mail)
            return loaded

        return Service(source(), self._readings, on_request=self._on_request, source=source)

    @property
    def _service(self) -> Service:
        if self._served is None:
            raise RuntimeError("the server has not been started")
        return self._served

    @property
    def url(self) -> str:
        """The address of the server, without a slash at its end."""
        return f"http://{self._reachable_host}:{self.port}"

    @property
    def _reachable_host(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared only

    @property
    def mailbox(self) -> Mailbox:
        """The mail it serves."""
        return self._service.mailbox

    @property
    def readings(self) -> Readings:
        """How it reads the open points; assign to change that at any time."""
        return self._service.readings

    @readings.setter
    def readings(self, readings: Readings) -> None:
        self._service.readings = readings

    @property
    def faults(self) -> Faults:
        """The faults in force."""
        return self._service.faults

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The calls so far, oldest first.

        Each has ``method``, ``path``, ``query``, ``json`` (None if it had none), ``status`` (None
        if it was not answered) and ``time`` (Unix seconds).
        """
        return self._service.requests

    @property
    def logins(self) -> int:
        """How many Login calls there were, refused ones too."""
        return self._service.logins

    @property
    def on_request(self) -> OnRequest | None:
        """What is called before each answer; assign to change it."""
        return self._service.on_request

    @on_request.setter
    def on_request(self, on_request: OnRequest | None) -> None:
        self._service.on_request = on_request

    def expire_tokens(self) -> None:
        """Every token issued so far is answered 401 from now on (R12)."""
        self._service.expire_tokens()

    def connection(self, **extra: Any) -> str:
        """The server as an Airflow connection: JSON for ``AIRFLOW_CONN_R7MAIL_DEFAULT``.

        :param extra: fields of the connection's Extra beside ``folders``, which has them all, and
            ``web_url``, which leads to the server's own page.
        """
        folders = {name: number for number, name in self.mailbox.folders.items()}
        return json.dumps(
            {
                "conn_type": "r7mail",
                "host": self._reachable_host,
                "port": self.port,
                "schema": "http",
                "login": self.mailbox.login,
                "password": self.mailbox.password,
                "extra": {
                    "folders": folders,
                    "web_url": f"{self.url}/folders/{{folder}}",
                    **extra,
                },
            },
            ensure_ascii=False,
        )


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound here and not in uvicorn, so that a taken port is the caller's exception."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's delay off only where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # Now: Linux lets two sockets share an address until one listens.
        listener.listen()
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


class _Server(uvicorn.Server):
    """uvicorn that starts and stops at once, instead of at its next tick of 0.1 s."""

    def __init__(self, service: Service, host: str) -> None:
        config = uvicorn.Config(
            create_app(service.mailbox, service=service, host=host),
            http=cast("Any", _protocol),
            loop="asyncio",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,  # the process's logging is not ours to set
            log_level="warning",
            access_log=False,
        )
        super().__init__(config)
        self.ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def stop(self) -> None:
        """Stop, from another thread."""
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def main_loop(self) -> None:
        """Serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        await self.on_tick(0)
        self.ready.set()
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(1.0):
                    await self._stopping.wait()
            except TimeoutError:
                await self.on_tick(0)  # the Date header

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the sockets, and wait for the answers under way to notice."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        tasks = list(self.server_state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
        for server in self.servers:
            await server.wait_closed()


class _Connection:
    """What faults do to a connection, on asyncio's transport."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def reset(self) -> None:
        """Break the connection with a TCP reset."""
        # SO_LINGER on, for 0 s: close() sends RST instead of FIN (socket(7)).
        linger = struct.pack("ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self._transport.abort()

    def close(self) -> None:
        """End the connection after what has been written."""
        self._transport.close()


def _protocol(**arguments: Any) -> asyncio.Protocol:
    """Uvicorn's HTTP protocol, which also tells the application which connection a call came by."""
    protocol: Any = AutoHTTPProtocol(**arguments)
    app = protocol.app

    async def connected(scope: Scope, receive: Receive, send: Send) -> None:
        scope[CONNECTION] = _Connection(protocol.transport)
        await app(scope, receive, send)

    protocol.app = connected
    return cast("asyncio.Protocol", protocol)
