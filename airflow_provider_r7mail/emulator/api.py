"""The API over HTTP: the manual's eight calls and the Disk's, with `Readings` and `Fault`."""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import anyio

from airflow_provider_r7mail.emulator import shapes
from airflow_provider_r7mail.emulator.dates import local_text
from airflow_provider_r7mail.emulator.disk import DiskCalls, form_of
from airflow_provider_r7mail.emulator.extra import from_extra
from airflow_provider_r7mail.emulator.faults import Failed
from airflow_provider_r7mail.emulator.folders import Stored, to_json
from airflow_provider_r7mail.emulator.listing import Search, find
from airflow_provider_r7mail.emulator.login import auth_data, envelope
from airflow_provider_r7mail.emulator.messages import NESTED, listed_size
from airflow_provider_r7mail.emulator.readings import Fault, Readings
from airflow_provider_r7mail.emulator.service import SeenCall, Service
from airflow_provider_r7mail.emulator.store import NotThere, Refused

with from_extra():
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response, StreamingResponse
    from starlette.types import Receive, Scope, Send

JSON_TYPE = "application/json; charset=utf-8"

_HTML_ERROR = (
    "<html>\r\n<head><title>{status} Error</title></head>\r\n<body>\r\n<center><h1>{status} "
    "Error</h1></center>\r\n<hr><center>proxy</center>\r\n</body>\r\n</html>\r\n"
)
_LOGIN = "/api/v2/auth/Login"
_NODE = "node"
_UPLOAD = "/api/v1/Documents/Upload"
_SECRETS = re.compile(rb'(?i)("(?:AuthToken|RefreshToken|ClientHash)":)"[^"]*"')
_SHOWN_BYTES = 2_000
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+")
_HIDDEN = re.compile(r"<(\w+)[^>]*display:\s*none[^>]*>.*?</\1>", re.DOTALL)


class Api:
    """ASGI application for everything under ``/api``.

    :param service: the state it works on.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._numbers = count(1)
        self._shuffle = random.Random(5)
        self._listings = 0
        self._calls: dict[str, tuple[str, Callable[[Any], Response]]] = {
            _LOGIN: ("POST", self._login),
            "/api/v1/email/Send": ("POST", self._send),
            "/api/v1/email/Messages": ("POST", self._messages),
            "/api/v1/email/MarkAsRead": ("POST", self._mark_as_read),
            "/api/v1/email/MarkAsFavorite": ("POST", self._mark_as_favorite),
            "/api/v1/email/Delete": ("POST", self._delete),
            "/api/v1/email/MoveMessage": ("POST", self._move),
            "/api/v1/email/Attachments": ("GET", self._attachment),
        }
        self._disk = DiskCalls(lambda: service.mailbox.disk, lambda: service.readings)
        for path, (method, _) in self._disk.calls.items():
            self._calls[path] = method, partial(self._use_disk, path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Record a call and respond to it, unless a fault hits it."""
        request = Request(scope, receive)
        early = self._service.faults.take(scope["path"], receiving=True)
        try:
            content = await (request.body() if early is None else _beginning(request, early))
        except ClientDisconnect:  # in the middle of its request
            return
        record = {
            "method": request.method,
            "path": scope["path"],
            "query": request.url.query,
            "json": None if scope["path"] == _UPLOAD else _json_or_none(content),
            "status": None,
            "time": time.time(),
        }
        self._service.requests.append(record)
        seen = self._see(request, content)
        began = time.perf_counter()
        try:
            response = await self._respond(request, content, record, seen, early)
            await response(scope, receive, send)
        finally:
            seen.seconds = time.perf_counter() - began

    def _see(self, request: Request, content: bytes) -> SeenCall:
        """Add a call to the list on the web page."""
        path: str = request.scope["path"]
        # A password may have been sent to a wrong path, too.
        shown = path in self._calls and path != _LOGIN
        seen = SeenCall(
            next(self._numbers),
            request.method,
            path[:_SHOWN_BYTES],
            request.url.query if shown else "",
            content[:_SHOWN_BYTES] if shown else b"",
            time.time(),
        )
        self._service.calls.append(seen)
        return seen

    async def _respond(
        self,
        request: Request,
        content: bytes,
        record: dict[str, Any],
        seen: SeenCall,
        early: Fault | None,
    ) -> Response:
        """Return the response to a call, and record it."""
        service = self._service
        if service.readings.latency_seconds > 0:
            await anyio.sleep(service.readings.latency_seconds)
        if service.on_request is not None:
            service.on_request(record)
        fault = early or service.faults.take(request.scope["path"])
        if fault is None:
            response = self._act(request, content)
            record["status"] = seen.status = response.status_code
            seen.size = len(response.body)
            if request.method == "POST" or response.status_code != 200:  # no files
                body = bytes(response.body)
                if seen.path == _LOGIN:
                    body = _SECRETS.sub(rb'\1"***"', body)
                seen.answer = body[:_SHOWN_BYTES]
            return response
        failed = Failed(fault, self._act(request, content) if fault.acts else None)
        record["status"] = seen.status = failed.status
        seen.fault = fault.kind
        return failed

    def _act(self, request: Request, content: bytes) -> Response:
        """Do what a call asks, and return the correct response."""
        path: str = request.scope["path"]
        readings = self._service.readings
        if path not in self._calls:
            return self._error(int(readings.wrong_path), f"no call {path}")
        method, call = self._calls[path]
        host = request.headers.get("host", "").partition(":")[0]
        if call != self._login and self._service.readings.mail_host not in {"", host}:
            return self._error(405, "another module")
        if request.method != method:
            return self._error(405, f"{path} takes {method}")
        if call != self._login and not self._is_known(request):
            return self._error(int(readings.dead_token), "unknown token")
        try:
            if call != self._login and not readings.mail_module:
                raise NotThere("the account has no access to the module Mail")
            asked: Any = request.url.query
            if path in self._disk.calls:
                self._disk.check_host(request.headers.get("host", ""))
            if path == _UPLOAD:
                asked = form_of(request.headers, content)
            elif method == "POST":
                asked = _json_of(request.headers.get("content-type", ""), content)
            with self._service.mailbox.lock:
                return self._named(call(asked))
        except Refused as refusal:
            return self._error(self._status_of(refusal), str(refusal))

    def _status_of(self, refusal: Refused) -> int:
        readings = self._service.readings
        if isinstance(refusal, NotThere):
            return int(readings.refusal)
        return int(readings.size_refusal) if isinstance(refusal, _TooLarge) else refusal.status

    def _named(self, response: Response) -> Response:
        """Return a response with the names that the readings ask for (R42)."""
        is_json = response.headers["Content-Type"] == JSON_TYPE
        if self._service.readings.names == "documented" or not is_json or not response.body:
            return response
        named = to_json(_in_camel_case(json.loads(bytes(response.body))))
        response.body = named
        response.headers["Content-Length"] = str(len(named))
        return response

    def _is_known(self, request: Request) -> bool:
        token = request.headers.get("authorization", "")
        if not self._service.readings.token_header_strict:
            token = token.removeprefix("Bearer ")
        return self._service.accepts_token(token, request.cookies.get(_NODE))

    def _error(self, status: int, reason: str) -> Response:
        match self._service.readings.error_body:
            case "empty":
                return Response(status_code=status)
            case "html":
                page = _HTML_ERROR.format(status=status)
                return Response(page, status, media_type="text/html")
            case _:
                body = {"Status": status, "StatusCode": status, "ErrorMessage": reason}
                return self._named(_json_response(to_json(body), status))

    # The calls

    def _login(self, asked: Any) -> Response:
        shapes.check(asked, shapes.LOGIN)
        service = self._service
        service.logins += 1
        known = (service.mailbox.login, service.mailbox.password)
        if (asked["Login"], asked["Password"]) != known:
            service.wrong_passwords += 1
            return self._refuse_login()
        if service.is_locked():
            return self._refuse_login()
        token, node = service.issue_token()
        response = _json_response(to_json(envelope(self._auth_data(token))))
        response.set_cookie(_NODE, node, httponly=True)
        return response

    def _refuse_login(self) -> Response:
        match self._service.readings.login_refusal:
            case "401":
                return self._error(401, "wrong login or password")
            case "500":
                return self._error(500, "wrong login or password")
            case "null_response":
                return _json_response(to_json({"Status": 200, "StatusCode": 200, "Response": None}))
            case "no_token":
                data = self._auth_data(None)
            case _:
                data = {**self._auth_data(str(uuid.uuid4())), "State": "Locked"}
        return _json_response(to_json(envelope(data)))

    def _auth_data(self, token: str | None) -> dict[str, Any]:
        return auth_data(self._service.mailbox, token, self._service.readings)

    def _messages(self, asked: Any) -> Response:
        readings = self._service.readings
        search = shapes.search_of(asked, zoneless=readings.bounds_as == "local")
        _check_size(search.offset, search.size, readings)
        search = _sortable(search, readings)
        self._listings += 1
        if readings.labels_required and search.labels is None:
            raise Refused("SearchContext has no Labels")
        mailbox = self._service.mailbox
        folder = mailbox.contents(asked["folderId"])
        page = find(
            mailbox.everything() if readings.foreign_rows else folder,
            search,
            readings,
            shuffle=self._shuffle,
            turn=self._listings,
        )
        items = b",".join([self._listed(record) for record in page.records])
        more = b',"TotalPages":1' if readings.unknown_fields else b""
        forms = {"number": page.count, "text": str(page.count), "null": None}
        return _json_response(
            b'{"FolderId":0,"Items":[%b],"Count":%b,"UnreadCount":%d%b}'
            % (items, to_json(forms[readings.count_form]), page.unread_count, more)
        )

    def _listed(self, record: Stored) -> bytes:
        """Return a message as a listing shows it (R17, R20)."""
        readings = self._service.readings
        hides_files = bool(record.files) and not readings.list_attachments
        odd_files = bool(record.files) and (
            readings.attachment_size != "bytes" or readings.nested_names != "given"
        )
        changes = (
            readings.unknown_fields
            or readings.missing_fields
            or readings.null_fields
            or readings.dates_without_zone
        )
        if not hides_files and not odd_files and not changes:
            return record.json()
        raw = record.raw()
        if hides_files:
            raw["Attachments"] = None
        for file in (raw.get("Attachments") or ()) if odd_files else ():
            _show_file(file, readings)
        if readings.unknown_fields:
            raw |= {"SpamScore": 0.5, "Workspace": {"Id": 1, "Name": "Общее"}}
        if readings.dates_without_zone:
            for name in ("Date",) if readings.timestamps_with_zone else ("Date", "Timestamp"):
                raw[name] = local_text(raw[name], readings.zone_hours)
        raw |= dict.fromkeys(readings.null_fields)
        for name in readings.missing_fields:
            raw.pop(name, None)
        return to_json(raw)

    def _send(self, asked: Any) -> Response:
        shapes.check(asked, shapes.SEND)
        if not any(asked.get(name) for name in ("To", "Cc", "Bcc")):
            raise Refused("no recipients")
        if self._service.readings.drafts_only and asked["Id"] == 0:
            raise NotThere("message 0 is not a draft")
        delay = self._service.readings.sent_delay_seconds
        if self._service.readings.strip_hidden:
            asked = {**asked, "HtmlBody": _HIDDEN.sub("", asked["HtmlBody"])}
        return _json_response(to_json(self._service.mailbox.send(asked, delay=delay)))

    def _mark_as_read(self, asked: Any) -> Response:
        shapes.check(asked, shapes.MARK_AS_READ)
        mailbox = self._service.mailbox
        done = mailbox.mark_read(asked["folderId"], asked["Ids"], asked["WasRead"])
        return _boolean(done, self._service.readings.unknown_mark_answer)

    def _mark_as_favorite(self, asked: Any) -> Response:
        shapes.check(asked, shapes.MARK_AS_FAVORITE)
        mailbox = self._service.mailbox
        done = mailbox.mark_important(asked["folderId"], asked["Ids"], asked["isFavorite"])
        return _boolean(done, self._service.readings.unknown_mark_answer)

    def _delete(self, asked: Any) -> Response:
        shapes.check(asked, shapes.DELETE)
        done = self._service.mailbox.delete(asked["folderId"], asked["Ids"])
        return _boolean(done, self._service.readings.repeat_answer)

    def _move(self, asked: Any) -> Response:
        shapes.check(asked, shapes.MOVE)
        readings = self._service.readings
        done = self._service.mailbox.move(
            asked["fromId"],
            asked["Ids"],
            asked["toId"],
            renumber=readings.move_id != "same",
            hide=readings.move_id == "hidden",
            delay=0.0 if readings.move_id == "new" else readings.move_seconds,
        )
        return _boolean(done, readings.repeat_answer)

    def _use_disk(self, path: str, asked: Any) -> Response:
        return _json_response(self._disk.answer(path, asked))

    def _attachment(self, asked: Any) -> Response:
        stored = self._service.mailbox.attached_file(*shapes.attachment_of(asked))
        # The type comes from the sender of the mail: an invalid one must not reach the headers.
        valid = _MEDIA_TYPE.fullmatch(stored.mime_type)
        headers = {"Content-Type": stored.mime_type if valid else "application/octet-stream"}
        if not self._service.readings.chunked_attachments:
            return Response(stored.data, headers=headers)
        return _Chunked(stored.data, headers)


class _Chunked(StreamingResponse):
    """A body without Content-Length (R22). Has ``body`` like other responses, for the faults."""

    def __init__(self, data: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(_pieces(data), headers=headers)
        self.body = data


async def _beginning(request: Request, fault: Fault) -> bytes:
    """Receive the part of a request's body that comes before a fault."""
    if fault.kind == "refuse":
        return b""
    wanted = int(int(request.headers.get("content-length", 0)) * fault.keep)
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) >= wanted:
            break
    return bytes(content[:wanted])


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 65_536):
        yield data[start : start + 65_536]


def _show_file(file: dict[str, Any], readings: Readings) -> None:
    """Change an attachment to what the readings show of it (R26, R38)."""
    if isinstance(file.get("Size"), int):  # a test may have set something else
        file["Size"] = listed_size(file["Size"], readings.attachment_size)
    if file.get("MimeType") == NESTED and readings.nested_names != "given":
        file["FileName"] = None if readings.nested_names == "null" else ""


def _sortable(search: Search, readings: Readings) -> Search:
    """Return a search with an order that the readings know (R28)."""
    if search.order_field != "Date" and readings.order_fields == "refused":
        raise Refused(f"can't order by {search.order_field}")
    return search if readings.order_fields == "any" else replace(search, order_field="Date")


class _TooLarge(Refused):
    """More messages are asked for than the server returns (R37)."""


def _check_size(offset: int, size: int, readings: Readings) -> None:
    for value, limit in ((size, readings.size_limit), (offset + size, readings.reach_limit)):
        if limit is not None and value > limit:
            raise _TooLarge(f"no more than {limit} messages")


def _boolean(done: bool, otherwise: str) -> Response:
    if not done and otherwise == "500":
        raise Refused("some of the messages are not in the folder")
    if not done and otherwise == "406":
        raise NotThere("some of the messages are not in the folder")
    return _json_response(b"true" if done or otherwise == "true" else b"false")


def _in_camel_case(value: Any) -> Any:
    """Return JSON with all names in camelCase (R42)."""
    if isinstance(value, dict):
        return {name[:1].lower() + name[1:]: _in_camel_case(item) for name, item in value.items()}
    return [_in_camel_case(item) for item in value] if isinstance(value, list) else value


def _json_response(body: bytes, status: int = 200) -> Response:
    return Response(body, status, {"Content-Type": JSON_TYPE})


def _json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content) if content else None
    except ValueError:
        return None


def _json_of(content_type: str, content: bytes) -> Any:
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refused("Content-Type is not application/json")
    try:
        return json.loads(content)
    except ValueError as error:
        raise Refused("the request is not JSON") from error
