"""The web page: the mail, the Disk, the last calls, and buttons that make calls fail.

Mail is untrusted. Templates escape all text. A message's HTML is sanitised and shown in a frame
that can't run scripts or load anything; its files can only be downloaded.
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

from airflow_provider_r7mail.emulator.extra import from_extra
from airflow_provider_r7mail.emulator.folders import INBOX
from airflow_provider_r7mail.emulator.messages import StoredFile, html_of_text
from airflow_provider_r7mail.emulator.readings import Fault
from airflow_provider_r7mail.emulator.service import service_of
from airflow_provider_r7mail.emulator.store import Refused

with from_extra():
    import nh3
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.responses import RedirectResponse, Response
    from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

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
    "refuse": ("413 before it is read", {"kind": "refuse", "status": 413}),
    "cut": ("Reset in mid-upload", {"kind": "cut"}),
    "lost": ("Done, but the response is lost", {"kind": "reset", "after_acting": True}),
    "truncate": ("Body cut off", {"kind": "truncate"}),
    "bad_json": ("Half of the JSON", {"kind": "bad_json"}),
    "slow": ("Slow, 5 s", {"kind": "slow", "seconds": 5.0}),
    "hang": ("No response for 30 s", {"kind": "hang", "seconds": 30.0}),
}
"""The fault buttons: the label of each, and the fields of its `Fault`."""

CALLS: Final = (
    "Login",
    "Messages",
    "Attachments",
    "Send",
    "Upload",
    "MarkAsRead",
    "MarkAsFavorite",
    "MoveMessage",
    "Delete",
)

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not no-referrer: with that, the page's own forms would have the origin "null".
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
    """Return the page's routes; none is below ``/api``."""
    return [
        Route("/", _folder),
        Route("/folders/{folder:int}", _folder),
        Route("/messages/{id:int}", _message),
        Route("/messages/{id:int}/html", _html),
        Route("/messages/{id:int}/files/{place:int}", _file),
        Route("/sent", _sent),
        Route("/disk", _disk),
        Route("/disk/{id:int}", _disk_file),
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
    :param files: number of its files.
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
    """One page of a list.

    :param number: number of the page, from 1.
    :param total: number of entries in the list.
    """

    number: int
    total: int

    @property
    def pages(self) -> int:
        """Number of pages of the list."""
        return max(1, -(-self.total // PAGE_SIZE))

    @property
    def newest_first(self) -> slice:
        """The entries on the page, as a slice of a list sorted oldest first."""
        stop = max(0, self.total - (self.number - 1) * PAGE_SIZE)
        return slice(max(0, stop - PAGE_SIZE), stop)


def _part(request: Request, total: int) -> Part:
    asked = request.query_params.get("page", "1")
    number = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 1
    return Part(min(max(1, number), Part(1, total).pages), total)


async def _folder(request: Request) -> Response:
    mailbox = service_of(request).mailbox
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
    mailbox = service_of(request).mailbox
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
        # An estimate: to measure the frame, a script would need access to it.
        height=min(900, 90 + 27 * sum(1 + len(line) // 70 for line in text.splitlines())),
        raw=json.dumps(raw, ensure_ascii=False, indent=2),
    )


async def _html(request: Request) -> Response:
    raw = _found(lambda: service_of(request).mailbox.get(request.path_params["id"]))
    given = _text(raw.get("HtmlBody")) or html_of_text(_text(raw.get("Body")))
    # Hostile HTML can take long to sanitise: don't block the API.
    html = _MAIL_PAGE % await run_in_threadpool(clean, given)
    return _answer(html, "text/html; charset=utf-8", _MAIL_POLICY)


async def _file(request: Request) -> Response:
    files = _found(lambda: service_of(request).mailbox.files(request.path_params["id"]))
    place = request.path_params["place"]
    if place >= len(files):
        raise HTTPException(404, "No such file.")
    return _download(files[place])


def _download(file: StoredFile) -> Response:
    # Whatever type the mail claims, the browser must not display it.
    answer = _answer(file.data, "application/octet-stream", _FILE_POLICY)
    name = quote(file.file_name, safe="", errors="replace")
    answer.headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{name}"
    return answer


async def _sent(request: Request) -> Response:
    mailbox = service_of(request).mailbox
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


async def _disk(request: Request) -> Response:
    mailbox = service_of(request).mailbox
    with mailbox.lock:
        directories = [
            (directory, mailbox.disk.files(directory.id))
            for directory in mailbox.disk.directories.values()
        ]
    return _page(request, "disk.html", here="disk", title="Disk", directories=directories)


async def _disk_file(request: Request) -> Response:
    mailbox = service_of(request).mailbox
    with mailbox.lock:
        document = mailbox.disk.documents.get(request.path_params["id"])
    if document is None:
        raise HTTPException(404, "No such file.")
    return _download(document.stored)


async def _calls(request: Request) -> Response:
    service = service_of(request)
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
        raise HTTPException(400, "No such fault.")
    fault = Fault(path=call or None, times=int(times) if times else None, **FAULTS[kind][1])
    service_of(request).faults.append(fault)
    return _back()


async def _clear_faults(request: Request) -> Response:
    service_of(request).faults.clear()
    return _back()


async def _expire_tokens(request: Request) -> Response:
    service_of(request).expire_tokens()
    return _back()


async def _reset(request: Request) -> Response:
    # Recreating the mailbox takes seconds: don't block other connections.
    await run_in_threadpool(service_of(request).reset)
    return _back()


async def _asset(request: Request) -> Response:
    kind = "text/css" if request.url.path.endswith(".css") else "text/javascript"
    return _answer(_source(request.url.path[1:]), f"{kind}; charset=utf-8", _FILE_POLICY)


def clean(html: str) -> str:
    """Remove scripts, links and everything external from a message's HTML.

    The frame's policy already blocks scripts and loading, but not ``<link rel=preconnect>``, which
    tells the sender that the mail was opened.

    :param html: the HTML as received.
    :returns: formatted text, tables and embedded images.
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


def _found(read: Any) -> Any:
    try:
        return read()
    except Refused as refusal:
        raise HTTPException(404, str(refusal)) from refusal


def _back() -> Response:
    return RedirectResponse("/calls", 303, headers=_HEADERS)


def _page(request: Request, template: str, **values: Any) -> Response:
    """Render a page, with what all of them show."""
    service = service_of(request)
    mailbox = service.mailbox
    with mailbox.lock:
        folders = [
            (number, name, len(mailbox.contents(number).records), mailbox.contents(number).unread)
            for number, name in mailbox.folders.items()
        ]
        sent = len(mailbox.sent)
        disk_count = len(mailbox.disk.documents)
    calls = list(service.calls)[::-1]
    html = (
        _templates()
        .get_template(template)
        .render(
            {
                "address": mailbox.address,
                "folders": folders,
                "sent_count": sent,
                "disk_count": disk_count,
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
    """Describe a fault that is set, by the label of its button if it has one."""
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
