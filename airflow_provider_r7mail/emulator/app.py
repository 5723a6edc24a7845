"""The API over HTTP: the manual's eight calls, on a mailbox, under given readings and faults."""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from airflow_provider_r7mail.emulator import shapes
from airflow_provider_r7mail.emulator.control import routes as control_routes
from airflow_provider_r7mail.emulator.dates import text_of_ticks, ticks_of
from airflow_provider_r7mail.emulator.faults import Failed
from airflow_provider_r7mail.emulator.guard import Guard
from airflow_provider_r7mail.emulator.listing import find
from airflow_provider_r7mail.emulator.mailbox import Mailbox, Refused, Stored, to_json
from airflow_provider_r7mail.emulator.page import routes as page_routes
from airflow_provider_r7mail.emulator.readings import Faults, Readings

JSON_TYPE = "application/json; charset=utf-8"
OnRequest = Callable[[dict[str, Any]], None]

_HTML_ERROR = (
    "<html>\r\n<head><title>{status} Error</title></head>\r\n<body>\r\n<center><h1>{status} "
    "Error</h1></center>\r\n<hr><center>proxy</center>\r\n</body>\r\n</html>\r\n"
)
_LOGIN = "/api/v2/auth/Login"
_SECRETS = re.compile(rb'("(?:AuthToken|RefreshToken|ClientHash)":)"[^"]*"')
_SHOWN_CALLS = 200
_SHOWN_BYTES = 2_000
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+")
_HIDDEN = re.compile(r"<(\w+)[^>]*display:\s*none[^>]*>.*?</\1>", re.DOTALL)
_MOSCOW_HOURS = 3
_TOKEN_HOURS = 12


@dataclass(slots=True)
class SeenCall:
    """A call as the server's page shows it: in part, and without passwords and tokens.

    :param number: which call it is, from 1.
    :param method: its HTTP method.
    :param path: its path.
    :param query: its query string.
    :param asked: the beginning of its body.
    :param time: when it came, in Unix seconds.
    :param seconds: how long it took; None while it is being answered.
    :param status: the status it was answered with; None if it got none.
    :param answer: the beginning of the answer.
    :param size: the size of the whole answer, in bytes.
    :param fault: the kind of fault it met; empty if none.
    """

    number: int
    method: str
    path: str
    query: str
    asked: bytes
    time: float
    seconds: float | None = None
    status: int | None = None
    answer: bytes = b""
    size: int = 0
    fault: str = ""

    @property
    def name(self) -> str:
        """The last word of its path."""
        return self.path.rpartition("/")[2]


class Service:
    """The server without its socket: an ASGI application for everything under ``/api``.

    :param mailbox: the mail it serves.
    :param readings: how it reads the manual's open points; may be assigned at any time.
    :param on_request: called with the record of each call just before it is answered, in the
        server's thread.
    :param source: makes the mailbox anew for a reset; None keeps it as it is.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        readings: Readings | None = None,
        *,
        on_request: OnRequest | None = None,
        source: Callable[[], Mailbox] | None = None,
    ) -> None:
        self.mailbox = mailbox
        self.readings = readings or Readings()
        self.faults = Faults()
        self.requests: list[dict[str, Any]] = []
        self.calls: deque[SeenCall] = deque(maxlen=_SHOWN_CALLS)
        self.logins = 0
        self.on_request = on_request
        self._source = source
        self._tokens: dict[str, int | None] = {}
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

    def expire_tokens(self) -> None:
        """Every token issued so far is answered 401 from now on (R12)."""
        self._tokens.clear()

    def reset(self) -> None:
        """Forget calls, faults, tokens and readings, and make the mailbox anew if that is known."""
        self.requests.clear()
        self.calls.clear()
        self.faults.clear()
        self.expire_tokens()
        self.logins = 0
        self.readings = Readings()
        if self._source is not None:
            self.mailbox = self._source()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call, unless a fault comes between."""
        request = Request(scope, receive)
        content = await request.body()
        path: str = scope["path"]
        record = {
            "method": request.method,
            "path": path,
            "query": request.url.query,
            "json": _json_or_none(content),
            "status": None,
            "time": time.time(),
        }
        self.requests.append(record)
        seen = self._see(request, content)
        began = time.perf_counter()
        try:
            response = await self._respond(request, content, record, seen)
            await response(scope, receive, send)
        finally:
            seen.seconds = time.perf_counter() - began

    def _see(self, request: Request, content: bytes) -> SeenCall:
        """Put a call on the page's list."""
        path: str = request.scope["path"]
        # What went to a wrong path may be a password as well.
        shown = path in self._calls and path != _LOGIN
        seen = SeenCall(
            next(self._numbers),
            request.method,
            path[:_SHOWN_BYTES],
            request.url.query if shown else "",
            content[:_SHOWN_BYTES] if shown else b"",
            time.time(),
        )
        self.calls.append(seen)
        return seen

    async def _respond(
        self, request: Request, content: bytes, record: dict[str, Any], seen: SeenCall
    ) -> Response:
        """The answer to a call, noted as such."""
        if self.readings.latency_seconds > 0:
            await anyio.sleep(self.readings.latency_seconds)
        if self.on_request is not None:
            self.on_request(record)
        fault = self.faults.take(request.scope["path"])
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
        """Do what a call asks, and give the right answer."""
        path: str = request.scope["path"]
        if path not in self._calls:
            return self._error(404, f"no call {path}")
        method, call = self._calls[path]
        if request.method != method:
            return self._error(405, f"{path} is called by {method}")
        if call != self._login and not self._is_known(request.headers.get("authorization", "")):
            return self._error(401, "no token that is known")
        try:
            asked: Any = request.url.query
            if method == "POST":
                asked = _json_of(request.headers.get("content-type", ""), content)
            with self.mailbox.lock:
                return call(asked)
        except Refused as refusal:
            return self._error(500, str(refusal))

    def _is_known(self, header: str) -> bool:
        token = header
        if not self.readings.token_header_strict:
            token = header.removeprefix("Bearer ")
        if token not in self._tokens:
            return False
        left = self._tokens[token]
        if left is None:
            return True
        if left <= 0:
            return False
        self._tokens[token] = left - 1
        return True

    def _error(self, status: int, reason: str) -> Response:
        match self.readings.error_body:
            case "empty":
                return Response(status_code=status)
            case "html":
                page = _HTML_ERROR.format(status=status)
                return Response(page, status, media_type="text/html")
            case _:
                body = {"Status": status, "StatusCode": status, "Message": reason, "Response": None}
                return _json_response(to_json(body), status)

    def _login(self, asked: Any) -> Response:
        shapes.check(asked, shapes.LOGIN)
        self.logins += 1
        known = (self.mailbox.login, self.mailbox.password)
        if (asked["Login"], asked["Password"]) != known:
            return self._refuse_login()
        token = str(uuid.uuid4())
        self._tokens[token] = self.readings.token_calls
        return _json_response(to_json(_envelope(self._auth_data(token))))

    def _refuse_login(self) -> Response:
        match self.readings.login_refusal:
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
        return _json_response(to_json(_envelope(data)))

    def _auth_data(self, token: str | None) -> dict[str, Any]:
        """What Login's answer holds, field by field as in the manual's example."""
        tokens = {
            "Id": 2,
            "User": None,
            "ClientHash": uuid.uuid4().hex + uuid.uuid4().hex,
            "AuthToken": token,
            "RefreshToken": str(uuid.uuid4()),
            "UserId": 3,
            "ExpiredAt": self._expired_at(),
            "Type": None,
        }
        if self.readings.expired_at == "absent":
            del tokens["ExpiredAt"]
        modules = ["Disk", "Admin", "Mail", "Calendar", "Draw", "Contacts", "Projects"]
        user = _user(self.mailbox)
        return {"Tokens": tokens, "State": "Login", "User": user, "ModulesAccess": modules}

    def _expired_at(self) -> str:
        now = datetime.now(UTC)
        match self.readings.expired_at:
            case "past":
                return text_of_ticks(ticks_of(now - timedelta(hours=_TOKEN_HOURS)), 7)
            case "other_zone":
                local = ticks_of(now + timedelta(hours=_TOKEN_HOURS + _MOSCOW_HOURS))
                return text_of_ticks(local, 7).replace("Z", f"+{_MOSCOW_HOURS:02d}:00")
            case _:
                return text_of_ticks(ticks_of(now + timedelta(hours=_TOKEN_HOURS)), 7)

    def _messages(self, asked: Any) -> Response:
        search = shapes.search_of(asked)
        self._listings += 1
        page = find(
            self.mailbox.contents(asked["folderId"]),
            search,
            self.readings,
            shuffle=self._shuffle,
            turn=self._listings,
        )
        items = b",".join([self._listed(record) for record in page.records])
        more = b',"TotalPages":1' if self.readings.unknown_fields else b""
        return _json_response(
            b'{"FolderId":0,"Items":[%b],"Count":%d,"UnreadCount":%d%b}'
            % (items, page.count, page.unread_count, more)
        )

    def _listed(self, record: Stored) -> bytes:
        """A message as a listing shows it (R17, R20)."""
        readings = self.readings
        hides_files = bool(record.files) and not readings.list_attachments
        changes = readings.unknown_fields or readings.missing_fields or readings.null_fields
        if not hides_files and not changes:
            return record.json()
        raw = record.raw()
        if hides_files:
            raw["Attachments"] = None
        if readings.unknown_fields:
            raw |= {"SpamScore": 0.5, "Workspace": {"Id": 1, "Name": "Общее"}}
        raw |= dict.fromkeys(readings.null_fields)
        for name in readings.missing_fields:
            raw.pop(name, None)
        return to_json(raw)

    def _send(self, asked: Any) -> Response:
        shapes.check(asked, shapes.SEND)
        if not any(asked.get(name) for name in ("To", "Cc", "Bcc")):
            raise Refused("nobody to send to")
        delay = self.readings.sent_delay_seconds
        if self.readings.strip_hidden:
            asked = {**asked, "HtmlBody": _HIDDEN.sub("", asked["HtmlBody"])}
        return _json_response(to_json(self.mailbox.send(asked, delay=delay)))

    def _mark_as_read(self, asked: Any) -> Response:
        shapes.check(asked, shapes.MARK_AS_READ)
        done = self.mailbox.mark_read(asked["folderId"], asked["Ids"], asked["WasRead"])
        return self._boolean(done, self.readings.unknown_mark_answer)

    def _mark_as_favorite(self, asked: Any) -> Response:
        shapes.check(asked, shapes.MARK_AS_FAVORITE)
        done = self.mailbox.mark_important(asked["folderId"], asked["Ids"], asked["isFavorite"])
        return self._boolean(done, self.readings.unknown_mark_answer)

    def _delete(self, asked: Any) -> Response:
        shapes.check(asked, shapes.DELETE)
        done = self.mailbox.delete(asked["folderId"], asked["Ids"])
        return self._boolean(done, self.readings.repeat_answer)

    def _move(self, asked: Any) -> Response:
        shapes.check(asked, shapes.MOVE)
        done = self.mailbox.move(asked["fromId"], asked["Ids"], asked["toId"])
        return self._boolean(done, self.readings.repeat_answer)

    def _boolean(self, done: bool, otherwise: str) -> Response:
        if not done and otherwise == "500":
            raise Refused("some of the messages are not in the folder")
        return _json_response(b"true" if done or otherwise == "true" else b"false")

    def _attachment(self, asked: Any) -> Response:
        stored = self.mailbox.attached_file(*shapes.attachment_of(asked))
        # The type comes from whoever sent the mail: it must not end up in the headers as it is.
        named = _MEDIA_TYPE.fullmatch(stored.mime_type)
        media_type = stored.mime_type if named else "application/octet-stream"
        headers = {"Content-Type": media_type}
        if not self.readings.chunked_attachments:
            return Response(stored.data, headers=headers)
        return _Chunked(stored.data, headers)


class _Chunked(StreamingResponse):
    """A body without Content-Length (R22). Like other responses it has ``body``, for the faults."""

    def __init__(self, data: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(_pieces(data), headers=headers)
        self.body = data


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 65_536):
        yield data[start : start + 65_536]


def create_app(
    mailbox: Mailbox,
    readings: Readings | None = None,
    *,
    on_request: OnRequest | None = None,
    service: Service | None = None,
    host: str = "",
) -> Starlette:
    """The server as an ASGI application, for ``httpx.ASGITransport`` or a server of one's own.

    Its `Service` (requests, faults, logins) is at ``app.state.service``. Without a socket, faults
    that break the connection raise ``ConnectionResetError``.

    :param mailbox: the mail it serves.
    :param readings: how it reads the manual's open points.
    :param on_request: called with the record of each call just before it is answered.
    :param service: an existing service to put on the web, in place of the other parameters.
    :param host: a name, beside addresses and ``localhost``, under which its page is served.
    """
    served = service or Service(mailbox, readings, on_request=on_request)
    app = Starlette(
        routes=[
            Mount("/api", app=served),
            Mount("/_emulator", routes=control_routes()),
            *page_routes(),
        ],
        middleware=[Middleware(Guard, host)],
    )
    app.state.service = served
    return app


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
        raise Refused("the request is no JSON") from error


def _envelope(data: Mapping[str, Any]) -> dict[str, Any]:
    response = {"TypeName": "AuthResponse", "Data": data}
    return {"Status": 200, "StatusCode": 200, "Response": response}


def _user(mailbox: Mailbox) -> dict[str, Any]:
    surname, first, middle = (*mailbox.name.split(maxsplit=2), "", "", "")[:3]
    role = {
        "Id": 3,
        "CustomerId": 1,
        "Type": 4,
        "Name": "Все R7",
        "ParentId": None,
        "ExternalId": None,
        "Parent": None,
        "Timestamp": "2025-06-19T13:19:53.792505Z",
        "ChangeDate": None,
        "OwnerId": None,
    }
    customer = {
        "Id": 1,
        "Status": 1,
        "Title": "R7",
        "Company": "P7-Офис",
        "Description": "P7-Офис",
        "CreatedAt": "2025-06-19T13:19:53.776659Z",
        **dict.fromkeys(("ParentId", "ParentName", "AuthType")),
        "IsParentSettings": False,
        **dict.fromkeys(("OwnerId", "Alias", "Domain", "Children")),
        "IsRoot": True,
        "RealmId": None,
    }
    return {
        "Id": 3,
        "Login": mailbox.login,
        "Name": mailbox.name,
        "Surname": surname,
        "FirstName": first,
        "MiddleName": middle,
        **dict.fromkeys(("Company", "Department", "Position")),
        "Jid": "13627706386606492567",
        **dict.fromkeys(("BirthDate", "PhoneNumber", "MobilePhone", "WorkPhone")),
        "Email": mailbox.address,
        "NotApproved": [{"Type": "Email", "Value": mailbox.address}],
        "About": None,
        "Modified": "0001-01-01T00:00:00",
        "ContactId": 3,
        "Type": 0,
        "Status": 1,
        "Roles": [role],
        **dict.fromkeys(("Group", "Avatar", "Interests", "City")),
        "Customer": customer,
        **dict.fromkeys(("DataStorageQuota", "Profile")),
        "HasAvatar": False,
    }
