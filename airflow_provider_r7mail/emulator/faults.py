"""Responses that fail on the wire, as ASGI responses."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Protocol

from airflow_provider_r7mail.emulator.extra import from_extra

with from_extra():
    from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from airflow_provider_r7mail.emulator.readings import Fault

CONNECTION = "r7mail.connection"
"""Key in the ASGI scope for the request's `Connection`."""


class Connection(Protocol):
    """What a fault can do to a connection. Missing if there is no socket."""

    def reset(self) -> None:
        """Break it at once: the client sees a reset."""

    def close(self) -> None:
        """Send what has been written, then close it."""


class Failed(Response):
    """A response broken by a fault.

    :param fault: what happens.
    :param right: the correct response, if the server acted.
    """

    def __init__(self, fault: Fault, right: Response | None) -> None:
        super().__init__(status_code=fault.status if fault.kind in {"status", "refuse"} else 200)
        self._fault = fault
        self._right = right or Response()

    @property
    def status(self) -> int | None:
        """The status that the client sees, if any."""
        return None if self._fault.kind in {"reset", "cut", "hang"} else self.status_code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond as the fault says."""
        fault = self._fault
        if fault.delay and await _is_gone(receive, fault.delay):
            return
        match fault.kind:
            case "reset" | "cut":
                await _reset(scope, receive)
            case "hang":
                if not await _is_gone(receive, fault.seconds or None):
                    await _reset(scope, receive)
            case "truncate":
                await self._truncate(scope, receive, send)
            case "slow" if fault.trickle:
                await self._trickle(receive, send)
            case "slow":
                if not await _is_gone(receive, fault.seconds):
                    await self._right(scope, receive, send)
            case "bad_json":
                body = _body(self._right)
                await Response(body[: max(1, len(body) // 2)], 200, media_type="application/json")(
                    scope, receive, send
                )
            case "refuse":
                await _instead(fault)(scope, receive, send)
                _connection(scope).close()
            case _:
                await _instead(fault)(scope, receive, send)

    async def _truncate(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _body(self._right)
        kept = body[: int(len(body) * self._fault.keep)]
        await _start(send, self._right, None if self._fault.chunked else len(body) or 1)
        await send({"type": "http.response.body", "body": kept, "more_body": True})
        connection = _connection(scope)
        connection.close()
        await _is_gone(receive, None)

    async def _trickle(self, receive: Receive, send: Send) -> None:
        body = _body(self._right)
        pieces = 10
        step = -(-len(body) // pieces) or 1
        await _start(send, self._right, len(body))
        for start in range(0, len(body), step):
            if await _is_gone(receive, self._fault.seconds / pieces):
                return
            piece = body[start : start + step]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _instead(fault: Fault) -> Response:
    """Return the response of a ``status`` or ``answer`` fault."""
    if fault.kind == "answer":
        text: str | bytes = json.dumps(fault.answer)
        status = 200
    else:
        text, status = fault.body, fault.status
    body = text.encode() if isinstance(text, str) else text
    headers = dict(fault.headers)
    if not any(name.lower() == "content-type" for name in headers):
        kind = "text/html; charset=utf-8"
        if fault.kind == "answer" or body[:1] in {b"{", b"["}:
            kind = "application/json; charset=utf-8"
        headers["Content-Type"] = kind
    return Response(body, status, headers)


def _body(response: Response) -> bytes:
    return bytes(response.body)


async def _start(send: Send, response: Response, length: int | None) -> None:
    headers = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})


async def _reset(scope: Scope, receive: Receive) -> None:
    _connection(scope).reset()
    # uvicorn logs an error for a missing response, unless it knows that the connection is gone.
    await _is_gone(receive, None)


def _connection(scope: Scope) -> Connection:
    connection: Connection | None = scope.get(CONNECTION)
    if connection is None:
        raise ConnectionResetError("a fault broke the connection")
    return connection


async def _is_gone(receive: Receive, seconds: float | None) -> bool:
    """Wait until the client disconnects or the server stops; return False after a timeout."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True
