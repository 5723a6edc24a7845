"""Calls of the API, made with plain httpx, as the tests of the emulator need them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

import httpx

if TYPE_CHECKING:
    from airflow_provider_r7mail.emulator import Emulator, Mailbox

SAMPLES = Path(__file__).parents[1] / "samples"
LOGIN = "/api/v2/auth/Login"
MAIL = "/api/v1/email"


class Api:
    """A client that only does what a test tells it to."""

    def __init__(self, server: Emulator) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, timeout=5, verify=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def log_in(self, login: str = "user_test", password: str = "TestPassword") -> httpx.Response:
        """Log in, and use the token from now on."""
        return log_in(self.http, login, password)

    def post(self, call: str, request: Any) -> httpx.Response:
        """Make a call of the mail API."""
        return self.http.post(f"{MAIL}/{call}", json=request)

    def page(
        self, offset: int = 0, size: int = 50, order: int = 0, folder: int = 24, **context: Any
    ) -> dict[str, Any]:
        """Return a page of a listing."""
        answer = self.post("Messages", listing(offset, size, order, folder, **context))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ids(self, **arguments: Any) -> list[int]:
        """Return the ids on a page."""
        return [item["Id"] for item in self.page(**arguments)["Items"]]

    def file(self, number: int, file_name: str, folder: int = 24) -> httpx.Response:
        """Download an attachment."""
        # Quoted here: httpx before 0.28 takes "%41" in a parameter for something quoted already.
        query = urlencode({"folderId": folder, "Id": number, "FileName": file_name})
        return self.http.get(f"{MAIL}/Attachments?{query}")


def log_in(
    http: httpx.Client, login: str = "user_test", password: str = "TestPassword"
) -> httpx.Response:
    """Log in, and use the token from now on."""
    answer = http.post(LOGIN, json={"Login": login, "Password": password})
    if answer.status_code == 200 and answer.json()["Response"]:
        token = answer.json()["Response"]["Data"]["Tokens"]["AuthToken"]
        http.headers["Authorization"] = token or ""
    return answer


def listing(
    offset: int = 0, size: int = 50, order: int = 0, folder: int = 24, **context: Any
) -> dict[str, Any]:
    """Return a Messages request."""
    return {
        "folderId": folder,
        "SearchContext": context,
        "offset": offset,
        "size": size,
        "sortOrder": order,
        "orderField": "Date",
    }


def letter(**changes: Any) -> dict[str, Any]:
    """Return a Send request."""
    text = {"Subject": "Тема", "Body": "b", "HtmlBody": "<p>b</p>"}
    return {**text, "To": ["a@b.ru"], "Id": 0, **changes}


def sample(name: str) -> Any:
    """Return the JSON of an example from the manual."""
    return json.loads((SAMPLES / name).read_text(encoding="utf-8"))


def minutes(mailbox: Mailbox, *values: int) -> list[int]:
    """Deliver messages dated at minutes of 10:00, and return their ids."""
    return [
        mailbox.deliver(subject=f"n{value}", date=f"2025-06-01T10:{value:02d}:00Z")
        for value in values
    ]
