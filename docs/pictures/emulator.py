"""Take screenshots of the emulator's pages: `make pictures`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox
from tests.browser import chromium

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

IMAGES = Path(__file__).parents[1] / "images"
INBOX = 24
DESKTOP: ViewportSize = {"width": 1280, "height": 760}
PHONE: ViewportSize = {"width": 390, "height": 760}


def main() -> None:
    """Make some calls on an office's mail, then take a screenshot of each page."""
    mailbox = Mailbox.office(end=datetime(2026, 11, 21, tzinfo=UTC))
    with Emulator(mailbox) as server, chromium() as browser:
        message = use(server)
        for name, path, size in (
            ("inbox", "/", DESKTOP),
            ("message", f"/messages/{message}", DESKTOP),
            ("calls", "/calls", DESKTOP),
            ("phone", "/", PHONE),
        ):
            page = browser.new_page(viewport=size)
            page.goto(server.url + path)
            if name == "calls":
                page.locator("summary").nth(3).click()
            page.screenshot(path=IMAGES / f"emulator-{name}.png")
            page.close()


def use(server: Emulator) -> int:
    """Make the calls of a DAG that loads price lists; return the id of the message it loaded."""
    mailbox = server.mailbox
    found: dict[str, Any] = next(
        message for message in reversed(mailbox.messages(INBOX)) if message["Attachments"]
    )
    number, file = found["Id"], found["Attachments"][0]["FileName"]
    with httpx.Client(base_url=server.url) as http:

        def call(name: str, **asked: Any) -> None:
            http.post(f"/api/v1/email/{name}", json=asked)

        def log_in() -> None:
            asked = {"Login": mailbox.login, "Password": mailbox.password}
            answer = http.post("/api/v2/auth/Login", json=asked).json()
            http.headers["Authorization"] = answer["Response"]["Data"]["Tokens"]["AuthToken"]

        page = {"folderId": INBOX, "offset": 0, "size": 50, "sortOrder": 1, "orderField": "Date"}
        log_in()
        call("Messages", **page, SearchContext={"Subject": "Прайс-лист", "WasRead": False})
        query = {"folderId": INBOX, "Id": number, "FileName": file}
        http.get("/api/v1/email/Attachments", params=query)
        call("MarkAsRead", folderId=INBOX, Ids=[number], WasRead=True)
        server.faults.append(Fault(path="Messages", status=503, body="<h1>Busy</h1>"))
        call("Messages", **page, SearchContext={})
        server.expire_tokens()
        call("Messages", **page, SearchContext={})
        log_in()
        call("Messages", **page, SearchContext={})
        letter = {"Subject": "Прайс-лист загружен", "Body": "120 строк.", "HtmlBody": "120 строк."}
        call("Send", **letter, To=["zakupki@devr7.ru"], Id=0)
    server.faults.append(Fault(path="Send", kind="reset", after_acting=True))
    return int(number)


if __name__ == "__main__":
    main()
