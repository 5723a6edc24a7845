from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import TypeVar

import aiohttp  # noqa: TID253 - no DAG file reads a test
import httpx
import pytest

from airflow_provider_r7mail import exceptions
from airflow_provider_r7mail.client.calls import delete_messages
from airflow_provider_r7mail.client.http import network, transport_failure
from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.exceptions import (
    R7MailConfigError,
    R7MailConnectionError,
    R7MailError,
    R7MailExtractError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailServerError,
    R7MailTimeoutError,
)
from airflow_provider_r7mail.failures import fail_at_once
from airflow_provider_r7mail.triggers import error_event, error_of

DOCS = Path(__file__).parents[1] / "docs"
CALL = delete_messages(24, [711])
E = TypeVar("E", bound=Exception)


def _tree(kind: type[E]) -> list[type[E]]:
    kinds = [kind]
    for child in kind.__subclasses__():
        kinds += _tree(child)
    return kinds


def _drawn_tree() -> dict[str, set[str]]:
    """Return each class in the drawing, with the names of its bases."""
    tree: dict[str, set[str]] = {}
    above: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        found = re.match(r"([│├└─ ]*)(R7Mail\w+)(?: \((\w+)\))?", line)
        if found is None:
            continue
        prefix, name, other = found.groups()
        depth = len(prefix) // 4
        del above[depth:]
        tree[name] = {above[-1] if above else "Exception", *([other] if other else [])}
        above.append(name)
    return tree


def test_the_drawn_tree_is_the_tree() -> None:
    """The error tree in the documentation is the one that I can catch."""
    kinds = _tree(R7MailError)
    actual = {
        kind.__name__: {base.__name__ for base in kind.__bases__}
        for kind in kinds
        if kind.__module__ == exceptions.__name__
    }

    assert _drawn_tree() == actual


def test_every_error_says_what_it_means() -> None:
    """Each error class explains itself in a sentence."""
    kinds = _tree(R7MailError)

    assert [kind for kind in kinds if not kind.__doc__] == []


def _made(kind: type[R7MailError]) -> R7MailError:
    if issubclass(kind, R7MailRequestError):
        return kind("no luck", method="GET", path="/x", hint="Look there.")
    return kind("no luck.")


def _documented() -> list[type[R7MailError]]:
    kinds = _tree(R7MailError)
    return [kind for kind in kinds if kind.__module__ == exceptions.__name__]


@pytest.mark.parametrize("kind", _documented(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("language", ["en", "ru"])
def test_every_error_leads_to_its_way_out(kind: type[R7MailError], language: str) -> None:
    """A message ends with a reference to the documentation, which has a section of that name."""
    found = re.search(r" \[docs: ([a-z-]+)#(\w+)\]$", str(_made(kind)))

    assert found
    page, section = found.groups()
    text = (DOCS / language / f"{page}.md").read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (\w+)$", text, re.MULTILINE)
    assert [title.lower() for title in titles].count(section) == 1
    assert kind.__name__ in titles


@pytest.mark.parametrize("kind", _documented(), ids=lambda kind: kind.__name__)
def test_the_place_is_told_once(kind: type[R7MailError]) -> None:
    """The reference appears once: in a copy, after pickling, in an event, and in a subclass."""
    error = _made(kind)
    own = type("OwnError", (kind,), {})

    for again in (copy.copy(error), pickle.loads(pickle.dumps(error)), _told(error)):
        assert type(again) is kind
        assert str(again) == str(error)
    assert str(error).count("[docs: ") == 1
    assert str(_made(own)) == str(error)


def test_a_task_that_fails_at_once_tells_it() -> None:
    """The error of a task that fails at once has the reference, too."""
    with pytest.raises(AirflowFailException) as caught, fail_at_once():
        raise R7MailConfigError("folder: unknown.")

    assert str(caught.value) == ("folder: unknown. [docs: when-it-goes-wrong#r7mailconfigerror]")


def _told(error: R7MailError) -> R7MailError:
    return error_of(json.loads(json.dumps(error_event(error))))


TRANSPORT = {
    httpx.TimeoutException: (R7MailTimeoutError, False),
    httpx.ConnectTimeout: (R7MailTimeoutError, True),
    httpx.ReadTimeout: (R7MailTimeoutError, False),
    httpx.WriteTimeout: (R7MailTimeoutError, False),
    httpx.PoolTimeout: (R7MailTimeoutError, True),
    httpx.NetworkError: (R7MailConnectionError, False),
    httpx.ConnectError: (R7MailConnectionError, True),
    httpx.ReadError: (R7MailConnectionError, False),
    httpx.WriteError: (R7MailConnectionError, False),
    httpx.CloseError: (R7MailConnectionError, False),
    httpx.ProtocolError: (R7MailConnectionError, False),
    httpx.LocalProtocolError: (R7MailConnectionError, False),
    httpx.RemoteProtocolError: (R7MailConnectionError, False),
    httpx.ProxyError: (R7MailConnectionError, True),
    httpx.UnsupportedProtocol: (R7MailConfigError, None),
    httpx.DecodingError: (R7MailResponseError, False),
}


def test_every_error_of_httpx_is_known() -> None:
    """Every error of httpx is covered, in this version and the next."""
    known = {kind for kind in TRANSPORT if issubclass(kind, httpx.TransportError)}

    assert set(_tree(httpx.TransportError)) - {httpx.TransportError} == known


@pytest.mark.parametrize(("theirs", "ours"), TRANSPORT.items(), ids=str)
def test_errors_of_httpx_become_ours(
    theirs: type[httpx.RequestError], ours: tuple[type[R7MailError], bool | None]
) -> None:
    """I only need to catch this package's errors; each says whether the request was sent (R23)."""
    with pytest.raises(R7MailError) as caught, network(CALL, 3):
        raise theirs("b'hello, secret'")

    kind, never_sent = ours
    assert type(caught.value) is kind
    assert getattr(caught.value, "never_sent", None) == never_sent
    assert getattr(caught.value, "attempt", 3) == 3


@pytest.mark.parametrize(
    ("error", "kind", "never_sent", "text"),
    [
        (
            aiohttp.ServerDisconnectedError(),
            R7MailConnectionError,
            False,
            "connection broke",
        ),
        (
            aiohttp.ClientOSError(104, "Connection reset"),
            R7MailConnectionError,
            False,
            "connection broke",
        ),
        (aiohttp.ConnectionTimeoutError(), R7MailTimeoutError, True, "reached in time"),
        (aiohttp.SocketTimeoutError(), R7MailTimeoutError, False, "respond in time"),
        (aiohttp.ClientPayloadError(), R7MailConnectionError, False, "connection broke"),
        (
            httpx.ReadError("[SSL: X] tlsv13 alert certificate required (_ssl.c:2580)"),
            R7MailConnectionError,
            False,
            "Set cert in the connection",
        ),
        (OSError(5, "I/O"), R7MailConnectionError, False, "connection broke"),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, Exception) else None,
)
def test_errors_of_the_network_are_told_apart(
    error: Exception, kind: type[R7MailError], never_sent: bool, text: str
) -> None:
    """Both clients distinguish a closed connection, a silent server and an unreachable one."""
    failure = transport_failure(CALL, error, 1)

    assert type(failure) is kind
    assert failure.never_sent == never_sent
    assert text in str(failure)


def test_what_was_received_is_not_quoted() -> None:
    """A log with the whole traceback quotes nothing from a response that was not HTTP."""
    with pytest.raises(R7MailConnectionError) as caught, network(CALL, 1):
        raise httpx.RemoteProtocolError("illegal status line: bytearray(b'Dear Anna')")

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_message_tells_where_and_what_to_do() -> None:
    """An error names the method, path, status, attempt and what to do."""
    error = R7MailServerError(
        "the server failed", method="POST", path="/api/x", status=500, attempt=2, hint="Look there."
    )
    silent = R7MailTimeoutError("no luck", method="GET", path="/api/y")

    assert error.text == "POST /api/x: the server failed (status 500, attempt 2). Look there."
    assert silent.text == "GET /api/y: no luck (no response, attempt 1)"


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_can_cross_processes(copied: object) -> None:
    """An error raised in a worker process arrives unchanged."""
    error = R7MailTimeoutError(
        "late", method="GET", path="/x", attempt=4, hint="Wait.", retry_after=2.5, never_sent=True
    )

    again = copied(error)  # type: ignore[operator]

    assert isinstance(again, R7MailTimeoutError)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_errors_fit_the_builtin_ones() -> None:
    """A wrong parameter is a ValueError, as is usual in Python."""
    assert issubclass(R7MailConfigError, ValueError)
    assert issubclass(exceptions.R7MailMessageNotFoundError, LookupError)
    assert issubclass(R7MailTimeoutError, R7MailRequestError)


def test_a_wrapped_error_refers_to_the_docs_once() -> None:
    """An error with another one's text in it ends with one reference to the documentation."""
    inner = R7MailConfigError("folder: unknown.")
    outer = R7MailExtractError(f"Nothing was written: {inner} Try again.")

    assert str(outer) == (
        "Nothing was written: folder: unknown. Try again. "
        "[docs: when-it-goes-wrong#r7mailextracterror]"
    )
    assert "[docs: " not in outer.text
