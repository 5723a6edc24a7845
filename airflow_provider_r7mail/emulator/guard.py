"""Access control: for programs and the emulator's own page, not for other web sites in a browser.

A web site open in a browser on this machine can send requests to 127.0.0.1. It must not press the
page's buttons, or read mail through a host name that resolves to this machine (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from airflow_provider_r7mail.emulator.extra import from_extra

with from_extra():
    from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class Guard:
    """ASGI middleware that responds 403 to requests another web site may have sent.

    The page and the control plane respond only on IP addresses, ``localhost`` and ``host``, because
    a site can make no other name but its own resolve to this machine. A request with an ``Origin``
    must come from the emulator's own page. API clients, which send no ``Origin``, can use any host
    name.

    :param app: the application to protect.
    :param host: another host name of this machine.
    """

    def __init__(self, app: ASGIApp, host: str = "") -> None:
        self._app = app
        self._host = host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it."""
        host = origin = ""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1").lower()
            elif name == b"origin":
                # "null" from a sandboxed frame.
                origin = value.decode("latin-1").lower()
        if (origin or not scope["path"].startswith("/api/")) and not self._is_ours(host):
            refusal = f"Not available as {host!r}: use http://127.0.0.1 and the port."
        elif origin and origin.partition("://")[2] != host:
            refusal = "Rejected: sent by a page of another web site."
        else:
            await self._app(scope, receive, send)
            return
        await PlainTextResponse(f"{refusal}\n", 403)(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        # IPv6 addresses are in brackets; a port may follow.
        name = host[1:].partition("]")[0] if host[:1] == "[" else host.rpartition(":")[0] or host
        if name in {"localhost", self._host} and name:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
