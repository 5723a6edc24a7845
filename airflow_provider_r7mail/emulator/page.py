"""The page at the server's root: its mail, the last calls, and buttons to make calls fail.

Mail is hostile. Templates escape all text. A message's HTML is cleaned, and shown in a frame that
may neither run scripts nor load anything; its files are only ever downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote

import nh3
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from airflow_provider_r7mail.emulator.mailbox import INBOX, Refused, StoredFile, html_of_text
from airflow_provider_r7mail.emulator.readings import Fault

if TYPE_CHECKING:
    from starlette.requests import Request

    from airflow_provider_r7mail.emulator.app import Service

PAGE_SIZE: Final = 50
SHOWN_CALLS: Final = 12

_PROXY_PAGE = "<html><body><h1>503 Service Unavailable</h1></body></html>"
FAULTS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "unavailable": (
        "503 from a proxy",
        {"status": 503, "body": _PROXY_PAGE, "headers": {"Retry-After": "1"}},
    ),
    "error": ("500", {"status": 500}),
    "reset": ("Connection reset", {"kind": "reset"}),
    "lost": ("Done, but the answer is lost", {"kind": "reset", "after_acting": True}),
    "truncate": ("Body breaks off", {"kind": "truncate"}),
    "bad_json": ("Half of the JSON", {"kind": "bad_json"}),
    "slow": ("Slow, 5 s", {"kind": "slow", "seconds": 5.0}),
    "hang": ("No answer for 30 s", {"kind": "hang", "seconds": 30.0}),
}
"""The fault buttons: what each says, and the fields of its `Fault`."""

CALLS: Final = (
    "Login",
    "Messages",
    "Attachments",
    "Send",
    "MarkAsRead",
    "MarkAsFavorite",
    "MoveMessage",
    "Delete",
)

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not no-referrer: with that, the page's own forms would come from the origin "null".
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_MAIL_POLICY = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_FILE_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"

_MAIL_PAGE = (
    "<!doctype html><html><head><meta charset=utf-8><title>Mail</title><style>"
    "body{font:16px/1.5 system-ui,sans-serif;margin:1rem;color:#1c2330;background:#fff;"
    "overflow-wrap:anywhere}img,table{max-width:100%%}</style></head><body>%s</body></html>"
)
_LOOKS = {"align", "bgcolor", "color", "dir", "face", "height", "size", "style", "valign", "width"}


def routes() -> list[Route]:
    """The page's routes; none is below ``/api``."""
    return [
        Route("/", _folder),
        Route("/folders/{folder:int}", _folder),
        Route("/messages/{id:int}", _message),
        Route("/messages/{id:int}/html", _html),
        Route("/messages/{id:int}/files/{place:int}", _file),
        Route("/sent", _sent),
        Route("/calls", _calls),
        Route("/faults", _add_fault, methods=["POST"]),
        Route("/faults/clear", _clear_faults, methods=["POST"]),
        Route("/tokens/expire", _expire_tokens, methods=["POST"]),
        Route("/reset", _reset, methods=["POST"]),
        Route("/page.css", _asset),
        Route("/page.js", _asset),
    ]


@dataclass(frozen=True)
class Line:
    """A message in a list.

    :param id: its Id.
    :param sender: who it is from.
    :param subject: its subject.
    :param date: its Date, to the minute.
    :param unread: whether it is unread.
    :param important: whether it is marked important.
    :param files: how many files it has.
    """

    id: int
    sender: str
    subject: str
    date: str
    unread: bool
    important: bool
    files: int


@dataclass(frozen=True)
class Part:
    """A page's place in a list.

    :param number: which page it is, from 1.
    :param total: how many entries the list has.
    """

    number: int
    total: int

    @property
    def pages(self) -> int:
        """How many pages the list has."""
        return max(1, -(-self.total // PAGE_SIZE))

    @property
    def newest_first(self) -> slice:
        """Which entries of a list, oldest first, the page has."""
        stop = max(0, self.total - (self.number - 1) * PAGE_SIZE)
        return slice(max(0, stop - PAGE_SIZE), stop)


def _part(request: Request, total: int) -> Part:
    asked = request.query_params.get("page", "1")
    number = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 1
    return Part(min(max(1, number), Part(1, total).pages), total)


async def _folder(request: Request) -> Response:
    mailbox = _service(request).mailbox
    folder = request.path_params.get("folder", INBOX)
    with mailbox.lock:
        records = _found(lambda: mailbox.contents(folder)).records
        part = _part(request, len(records))
        lines = [_line(record.raw(), len(record.files)) for record in records[part.newest_first]]
    return _page(
        request,
        "folder.html",
        here=folder,
        title=mailbox.folders[folder],
        lines=lines[::-1],
        part=part,
    )


async def _message(request: Request) -> Response:
    mailbox = _service(request).mailbox
    number = request.path_params["id"]
    with mailbox.lock:
        raw = _found(lambda: mailbox.get(number))
        files = mailbox.files(number)
    text = _text(raw.get("Body"))
    return _page(
        request,
        "message.html",
        here=raw.get("FolderId"),
        title=_text(raw.get("Subject")) or "(no subject)",
        number=number,
        line=_line(raw, len(files)),
        recipients=[(name, _addresses(raw.get(name))) for name in ("To", "Cc", "Bcc")],
        files=files,
        text=text,
        # A script that measures the frame would need to reach into it.
        height=min(900, 90 + 27 * sum(1 + len(line) // 70 for line in text.splitlines())),
        raw=json.dumps(raw, ensure_ascii=False, indent=2),
    )


async def _html(request: Request) -> Response:
    raw = _found(lambda: _service(request).mailbox.get(request.path_params["id"]))
    given = _text(raw.get("HtmlBody")) or html_of_text(_text(raw.get("Body")))
    # What takes long for a hostile mail must not hold up the API.
    html = _MAIL_PAGE % await run_in_threadpool(clean, given)
    return _answer(html, "text/html; charset=utf-8", _MAIL_POLICY)


async def _file(request: Request) -> Response:
    files = _found(lambda: _service(request).mailbox.files(request.path_params["id"]))
    place = request.path_params["place"]
    if place >= len(files):
        raise HTTPException(404, "There is no such file.")
    file: StoredFile = files[place]
    # Whatever type the mail claims, here it is bytes to keep.
    answer = _answer(file.data, "application/octet-stream", _FILE_POLICY)
    name = quote(file.file_name, safe="", errors="replace")
    answer.headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{name}"
    return answer


async def _sent(request: Request) -> Response:
    mailbox = _service(request).mailbox
    with mailbox.lock:
        part = _part(request, len(mailbox.sent))
        sent = [
            {
                "id": item["Id"],
                "known": mailbox.has(item["Id"]),
                "subject": _text(item.get("Subject")),
                "text": _text(item.get("Body"))[:200],
                "recipients": [(name, _addresses(item.get(name))) for name in ("To", "Cc", "Bcc")],
                "files": [_text(file.get("FileName")) for file in item.get("Attachments") or ()],
            }
            for item in mailbox.sent[part.newest_first]
        ]
    return _page(
        request, "sent.html", here="sent", title="Accepted by Send", sent=sent[::-1], part=part
    )


async def _calls(request: Request) -> Response:
    service = _service(request)
    return _page(
        request,
        "calls.html",
        here="calls",
        title="Calls and faults",
        faults=[_fault_text(fault) for fault in service.faults],
        buttons=[(key, text) for key, (text, _) in FAULTS.items()],
        names=CALLS,
    )


async def _add_fault(request: Request) -> Response:
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    kind, call, times = (form.get(name, [""])[0] for name in ("fault", "call", "times"))
    if kind not in FAULTS or call not in {"", *CALLS} or times not in {"1", "3", ""}:
        raise HTTPException(400, "There is no such fault.")
    fault = Fault(path=call or None, times=int(times) if times else None, **FAULTS[kind][1])
    _service(request).faults.append(fault)
    return _back()


async def _clear_faults(request: Request) -> Response:
    _service(request).faults.clear()
    return _back()


async def _expire_tokens(request: Request) -> Response:
    _service(request).expire_tokens()
    return _back()


async def _reset(request: Request) -> Response:
    # Making the mailbox anew takes seconds: other connections are served meanwhile.
    await run_in_threadpool(_service(request).reset)
    return _back()


async def _asset(request: Request) -> Response:
    kind = "text/css" if request.url.path.endswith(".css") else "text/javascript"
    return _answer(_source(request.url.path[1:]), f"{kind}; charset=utf-8", _FILE_POLICY)


def clean(html: str) -> str:
    """A message's HTML without anything that acts, or leads anywhere.

    The frame's policy already stops scripts and loading. It does not stop ``<link
    rel=preconnect>``, by which a sender learns that the mail was opened.

    :param html: the HTML as it came.
    :returns: HTML of text, tables and embedded pictures, with its looks.
    """
    return nh3.clean(
        html.encode("utf-8", "replace").decode(),
        tags=nh3.ALLOWED_TAGS | {"font"},
        attributes={**nh3.ALLOWED_ATTRIBUTES, "*": _LOOKS, "img": {"alt", "src"}},
        attribute_filter=_kept,
        url_schemes={"data"},
        link_rel=None,
    )


def _kept(tag: str, name: str, value: str) -> str | None:
    if name in {"cite", "href", "src"}:
        return value if tag == "img" and value.startswith("data:image/") else None
    return value


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _found(read: Any) -> Any:
    try:
        return read()
    except Refused as refusal:
        raise HTTPException(404, str(refusal)) from refusal


def _back() -> Response:
    return RedirectResponse("/calls", 303, headers=_HEADERS)


def _page(request: Request, template: str, **values: Any) -> Response:
    """One of the pages, with what all of them have."""
    service = _service(request)
    mailbox = service.mailbox
    with mailbox.lock:
        folders = [
            (number, name, len(mailbox.contents(number).records), mailbox.contents(number).unread)
            for number, name in mailbox.folders.items()
        ]
        sent = len(mailbox.sent)
    calls = list(service.calls)[::-1]
    html = (
        _templates()
        .get_template(template)
        .render(
            {
                "address": mailbox.address,
                "folders": folders,
                "sent_count": sent,
                "fault_count": len(service.faults),
                "calls": calls,
                "shown_calls": SHOWN_CALLS,
                **values,
            }
        )
    )
    return _answer(html, "text/html; charset=utf-8", _PAGE_POLICY)


def _answer(content: str | bytes, media_type: str, policy: str) -> Response:
    # Lone surrogates (R21) have no UTF-8.
    body = content.encode("utf-8", "replace") if isinstance(content, str) else content
    headers = {**_HEADERS, "Content-Type": media_type, "Content-Security-Policy": policy}
    return Response(body, headers=headers)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("airflow_provider_r7mail.emulator"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clock": _clock,
        "excerpt": _excerpt,
        "number": "{:,}".format,
        "reason": _reason,
        "size": _size,
    }
    return environment


@cache
def _source(name: str) -> str:
    loader = _templates().loader
    assert loader is not None  # noqa: S101 - given above
    return loader.get_source(_templates(), name)[0]


def _line(raw: Mapping[str, Any], files: int) -> Line:
    sender = raw.get("From")
    sender = sender if isinstance(sender, dict) else {}
    return Line(
        id=raw.get("Id", 0),
        sender=_text(sender.get("Name")) or _text(sender.get("Address")) or "(no sender)",
        subject=_text(raw.get("Subject")) or "(no subject)",
        date=_text(raw.get("Date"))[:16].replace("T", " ") or "(no date)",
        unread=not raw.get("WasRead"),
        important=bool(raw.get("Important")),
        files=files,
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _addresses(value: Any) -> str:
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return ", ".join(_text(item) for item in values)


def _fault_text(fault: Fault) -> str:
    """A fault in force, in words: those of its button, if it has one."""
    bare = replace(fault, path=None, times=1, skip=0)
    texts = [text for text, fields in FAULTS.values() if Fault(**fields) == bare]
    text = texts[0] if texts else fault.kind
    return f"{fault.path or 'Any call'}: {text}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")


def _excerpt(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _size(count: int) -> str:
    if count < 1_000:
        return f"{count} B"
    return f"{count / 1_000:,.0f} KB" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"
