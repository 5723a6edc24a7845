"""The emulator as an ASGI application: the API, the control plane and the web page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_r7mail.emulator.api import Api
from airflow_provider_r7mail.emulator.control import routes as control_routes
from airflow_provider_r7mail.emulator.extra import from_extra
from airflow_provider_r7mail.emulator.guard import Guard
from airflow_provider_r7mail.emulator.page import routes as page_routes
from airflow_provider_r7mail.emulator.service import OnRequest, Service

with from_extra():
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Mount

if TYPE_CHECKING:
    from airflow_provider_r7mail.emulator.mailbox import Mailbox
    from airflow_provider_r7mail.emulator.readings import Readings


def create_app(
    mailbox: Mailbox,
    readings: Readings | None = None,
    *,
    on_request: OnRequest | None = None,
    service: Service | None = None,
    host: str = "",
) -> Starlette:
    """Create an ASGI application, for ``httpx.ASGITransport`` or your own server.

    Its `Service` (requests, faults, logins) is ``app.state.service``. Without a socket, faults that
    break the connection raise ``ConnectionResetError``.

    :param mailbox: the mail to serve.
    :param readings: how to behave where the manual is open.
    :param on_request: called with the record of each call before it is handled.
    :param service: an existing service to use in place of the parameters above.
    :param host: a host name for the web page, besides IP addresses and ``localhost``.
    """
    served = service or Service(mailbox, readings, on_request=on_request)
    app = Starlette(
        routes=[
            Mount("/api", app=Api(served)),
            Mount("/_emulator", routes=control_routes()),
            *page_routes(),
        ],
        middleware=[Middleware(Guard, host)],
    )
    app.state.service = served
    return app
