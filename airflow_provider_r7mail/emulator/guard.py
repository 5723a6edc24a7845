"""Who may look: programs, and the server's own page, but no web site in somebody's browser.

A browser on this machine reaches 127.0.0.1 for any site it shows. Such a site must not press the
page's buttons, nor read mail by giving itself a name that leads here (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class Guard:
    """ASGI middleware that answers 403 to what a foreign web site may have sent.

    Its page and control plane are served under an IP address, ``localhost`` or ``host`` only: a
    site can make its own name lead here, but not those. A request from a browser's page, which
    says so by ``Origin``, must come from a page of this server. Clients of the API, which send no
    ``Origin``, may call the server by any name.

    :param app: what is guarded.
    :param host: one more name of this server.
    """

    def __init__(self, app: ASGIApp, host: str = "") -> None:
        self._app = app
        self._host = host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        host = origin = ""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1").lower()
            elif name == b"origin":
                # A sandboxed frame's is "null".
                origin = value.decode("latin-1").lower()
        if (origin or not scope["path"].startswith("/api/")) and not self._is_ours(host):
            refusal = f"Not served as {host!r}: use http://127.0.0.1 and the port."
        elif origin and origin.partition("://")[2] != host:
            refusal = "Another web site's page sent this: refused."
        else:
            await self._app(scope, receive, send)
            return
        await PlainTextResponse(f"{refusal}\n", 403)(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        # An IPv6 address is in brackets, and a port may follow either.
        name = host[1:].partition("]")[0] if host[:1] == "[" else host.rpartition(":")[0] or host
        if name in {"localhost", self._host} and name:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
