"""Servers of bare bytes, a proxy, certificates and ports, for what no proper server does."""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Request:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    number: int


def reply(
    body: bytes | str = b"true", *headers: str, status: str = "200 OK", framed: bool = True
) -> bytes:
    """Write an HTTP answer.

    :param headers: more of its lines
    :param framed: with its Content-Length
    """
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    if framed:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode() + content


TOKEN = "0f8fad5b-d9cb-469f-a165-70867728950e"
LOGIN = json.dumps({"Response": {"Data": {"State": "Login", "Tokens": {"AuthToken": TOKEN}}}})


class Wire:
    """A server of bare bytes, for what no proper server does.

    :param answer: what to send for a request other than Login; None hangs up. What does not end
        with its Content-Length goes with `close`, after which the connection is closed.
    :param tls: speaks TLS
    """

    def __init__(
        self,
        answer: Callable[[Request], bytes | None] = lambda _: reply(),
        *,
        close: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.open = 0
        self._answer = answer
        self._close = close
        self._tls = tls
        self._connections = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[Request]:
        """The requests other than Login."""
        return [request for request in self.requests if not request.target.endswith("/Login")]

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5)

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                self._sockets.append(connection)
                self._connections += 1
                self._run(self._serve, connection, self._connections)

    def _serve(self, connection: socket.socket, number: int) -> None:
        self.open += 1
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._sockets.append(connection)
            with connection, connection.makefile("rb") as stream:
                self.talk(connection, stream, number)
        except (OSError, ValueError):
            pass
        finally:
            self.open -= 1

    def talk(self, connection: socket.socket, stream: Any, number: int) -> None:
        """Answer one request after another."""
        count = 0
        while (request := _read_request(stream, number, count + 1)) is not None:
            count += 1
            self.requests.append(request)
            login = request.target.endswith("/Login")
            cookie = "Set-Cookie: node=login; Path=/"
            answer = reply(LOGIN, cookie) if login else self._answer(request)
            if answer is not None:
                connection.sendall(answer)
            if answer is None or (self._close and not login):
                connection.shutdown(socket.SHUT_RDWR)
                return


def _read_request(stream: Any, connection: int, number: int) -> Request | None:
    head = stream.readline().decode("latin-1").split()
    if len(head) != 3:
        return None
    headers: dict[str, str] = {}
    while line := stream.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", 0)))
    return Request(head[0], head[1], headers, body, connection, number)


class Proxy(Wire):
    """An HTTP proxy: forwards requests, and tunnels with CONNECT, all to one server.

    :param target: the server's port, whatever the request says
    :param password: `user:password` in base64 that it asks for
    """

    def __init__(self, target: int, *, password: str | None = None) -> None:
        super().__init__()
        self._target = target
        self._password = password

    def talk(self, connection: socket.socket, stream: Any, number: int) -> None:
        """Forward one request after another, or open a tunnel."""
        while (request := _read_request(stream, number, 1)) is not None:
            self.requests.append(request)
            given = request.headers.get("proxy-authorization")
            if self._password is not None and given != f"Basic {self._password}":
                connection.sendall(reply("Who?", status="407 Proxy Authentication Required"))
                continue
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                self._sockets.append(server)
                if request.method == "CONNECT":
                    connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    self._run(_tunnel, connection, server)
                    _tunnel(server, connection)
                    return
                path = request.target.removeprefix("http://").partition("/")[2]
                head = [f"{request.method} /{path} HTTP/1.1"]
                head += [f"{name}: {value}" for name, value in request.headers.items()]
                server.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + request.body)
                server.shutdown(socket.SHUT_WR)
                _pipe(server, connection)


def _tunnel(source: socket.socket, target: socket.socket) -> None:
    _pipe(source, target)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)


@dataclass
class Certificates:
    """Files of an authority, and of a server and a client that it vouches for."""

    folder: Path
    authority: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def path(self, name: str) -> str:
        """The path of a file."""
        return str(self.folder / f"{name}.pem")

    def make(
        self,
        name: str,
        *,
        password: bytes | None = None,
        host: str = "127.0.0.1",
        expired: bool = False,
        key_usage: bool = True,
    ) -> None:
        """Write `{name}.pem` with a certificate and its key, and the two apart."""
        own = self.authority if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=-1 if expired else 1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address(host))]
                ),
                critical=False,
            )
            # Python 3.13 asks for these.
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()),
                critical=False,
            )
        )
        if key_usage:
            builder = builder.add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=name == "ca",
                    crl_sign=name == "ca",
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        signed = builder.sign(self.authority, hashes.SHA256())
        certificate = signed.public_bytes(serialization.Encoding.PEM)
        Path(self.path(name)).with_suffix(".der").write_bytes(
            signed.public_bytes(serialization.Encoding.DER)
        )
        key = own.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption(),
        )
        Path(self.path(name)).write_bytes(certificate + key)
        Path(self.path(f"{name}-cert")).write_bytes(certificate)
        Path(self.path(f"{name}-key")).write_bytes(key)

    def server(
        self, name: str = "server", *, ask: bool = False, oldest: bool = False
    ) -> ssl.SSLContext:
        """The server's side; `ask` for the client's certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(name))
        if oldest:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        if ask:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.path("ca-cert"))
        return context


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class full_port:  # noqa: N801 - used like a function
    """A port with a full queue: connecting to it waits, as with an unreachable host."""

    def __enter__(self) -> int:
        self._sockets = [socket.socket()]
        self._sockets[0].bind(("127.0.0.1", 0))
        self._sockets[0].listen(0)
        port: int = self._sockets[0].getsockname()[1]
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
            self._sockets.append(waiting)
        return port

    def __exit__(self, *exc: object) -> None:
        for opened in self._sockets:
            opened.close()
