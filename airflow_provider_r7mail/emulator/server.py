"""The emulator on a socket: uvicorn in a thread."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from airflow_provider_r7mail.emulator.app import create_app
from airflow_provider_r7mail.emulator.extra import from_extra
from airflow_provider_r7mail.emulator.faults import CONNECTION
from airflow_provider_r7mail.emulator.mailbox import Mailbox
from airflow_provider_r7mail.emulator.readings import Faults, Readings
from airflow_provider_r7mail.emulator.service import OnRequest, Service

with from_extra():
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    from types import TracebackType

    from starlette.types import Receive, Scope, Send

_START_SECONDS = 10
_STOP_SECONDS = 5


class Emulator:
    """A local R7-Office mail server. Use it as a context manager, or call `start` and `stop`.

    :param mail: the mailbox to serve, or a path to load it from (see `Mailbox.load`); the generated
        mail of an office when None (see `Mailbox.office`).
    :param readings: how to behave where the manual is open.
    :param port: the port to listen on; 0 picks a free one.
    :param on_request: called in the server's thread with the record of each call, before the call
        is handled. It may change the mailbox, and must not call the server.
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
        """Load the mail and listen. Returns when the server is ready.

        :raises OSError: the port is in use, or the path does not exist.
        :raises ValueError: there is no mail at the path.
        """
        if self._running is not None:
            raise RuntimeError("the server is already running")
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
        """Abort calls in progress, close all connections, and end the thread."""
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
        """The URL of the server, without a trailing slash."""
        return f"http://{self._reachable_host}:{self.port}"

    @property
    def _reachable_host(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared only

    @property
    def mailbox(self) -> Mailbox:
        """The mail that is served."""
        return self._service.mailbox

    @property
    def readings(self) -> Readings:
        """How to behave where the manual is open; may be assigned at any time."""
        return self._service.readings

    @readings.setter
    def readings(self, readings: Readings) -> None:
        self._service.readings = readings

    @property
    def faults(self) -> Faults:
        """The faults that are set."""
        return self._service.faults

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The calls so far, oldest first.

        Each has ``method``, ``path``, ``query``, ``json`` (None if there was none), ``status``
        (None if there was no response) and ``time`` (Unix seconds).
        """
        return self._service.requests

    @property
    def logins(self) -> int:
        """Number of Login calls, including refused ones."""
        return self._service.logins

    @property
    def on_request(self) -> OnRequest | None:
        """The function called before each call is handled; may be assigned at any time."""
        return self._service.on_request

    @on_request.setter
    def on_request(self, on_request: OnRequest | None) -> None:
        self._service.on_request = on_request

    def expire_tokens(self) -> None:
        """Refuse every token issued so far (R12, R24)."""
        self._service.expire_tokens()

    def connection(self, **extra: Any) -> str:
        """Return an Airflow connection to the server: JSON for ``AIRFLOW_CONN_R7MAIL_DEFAULT``.

        :param extra: fields to add to the connection's Extra, which has ``folders`` with all
            folders, and ``web_url`` for links to the web page.
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
    """Bind a socket here, not in uvicorn, so that a port in use raises for the caller."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm only if the protocol is given.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # Right now, because Linux lets two sockets share an address until one listens.
        listener.listen()
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


class _Server(uvicorn.Server):
    """uvicorn, but it starts and stops at once instead of at its next tick of 0.1 s."""

    def __init__(self, service: Service, host: str) -> None:
        config = uvicorn.Config(
            create_app(service.mailbox, service=service, host=host),
            http=cast("Any", _protocol),
            loop="asyncio",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,  # leave the process's logging alone
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
        """Serve until stopped."""
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
        """Close the sockets, and wait for calls in progress to notice."""
        for listener in sockets or []:
            asyncio.get_running_loop().remove_reader(listener)
        # A closed server can't finish what it is accepting: that would stay open.
        await _let_run()
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        await _let_run()
        tasks = list(self.server_state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
        for server in self.servers:
            await server.wait_closed()


async def _let_run() -> None:
    """Let the loop do what is due."""
    for _ in range(5):
        await asyncio.sleep(0)


class _Connection:
    """A `Connection` on asyncio's transport."""

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
        """Close the connection after what has been written."""
        self._transport.close()


def _protocol(**arguments: Any) -> asyncio.Protocol:
    """Create uvicorn's HTTP protocol, which also passes the connection to the application."""
    protocol: Any = AutoHTTPProtocol(**arguments)
    app = protocol.app

    async def connected(scope: Scope, receive: Receive, send: Send) -> None:
        scope[CONNECTION] = _Connection(protocol.transport)
        await app(scope, receive, send)

    protocol.app = connected
    return cast("asyncio.Protocol", protocol)
