"""The notifier: send a mail from callbacks of tasks, DAGs and deadlines."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from datetime import timedelta
from html import escape
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import quote

from jinja2 import StrictUndefined

from airflow_provider_r7mail.client.compose import parse_addresses
from airflow_provider_r7mail.client.limit import run_within
from airflow_provider_r7mail.compat import BaseNotifier, Variable, conf, redact
from airflow_provider_r7mail.exceptions import (
    R7MailConfigError,
    R7MailError,
    R7MailSendUnclearError,
)
from airflow_provider_r7mail.files import AfterSending, find_files
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.template_files import TemplateFiles

if TYPE_CHECKING:
    import jinja2

    from airflow_provider_r7mail.compat import DAG, Context
    from airflow_provider_r7mail.hooks import Accepted

log = logging.getLogger(__name__)

MAX_EXCEPTION_CHARS = 2000

REQUIRED = frozenset({"to", "files", "r7mail_conn_id"})
"""Parameters without a default that is safe: nothing is sent without its files."""

SEND_SECONDS = 10.0
"""How long a callback waits for the mail server.

The DAG processor runs all callbacks of a DAG file in one process, and ends it after 50 seconds.
"""

_CLAIMING = threading.Lock()


@dataclass(slots=True)
class _Throttle:
    """Lets one mail through per interval and counts the others, in an Airflow Variable.

    Reading and writing the Variable is not atomic: if callbacks run at the same instant in
    different processes, more than one may be let through, and the count may miss some.

    :param seconds: the interval; 0 lets every mail through and doesn't use a Variable
    :param key: the Variable's key
    :param about: the Variable's description
    """

    seconds: float
    key: str
    about: str
    _before: tuple[float, int] = field(default=(0.0, 0), init=False)

    def claim(self) -> int | None:
        """Ask for permission to send; once granted, other mails are held back.

        :return: number of mails held back since the last one, or None if this one is held back
        """
        if not self.seconds:
            return 0
        try:
            # The triggerer runs many callbacks at once in one process.
            with _CLAIMING:
                sent_at, unsent = self._before = self._read()
                now = time.time()
                # Absolute, since the clocks of two workers may differ.
                if abs(now - sent_at) < self.seconds:
                    self._write(sent_at, unsent + 1)
                    return None
                self._write(now, 0)
        except Exception as error:
            # Whatever the failure, the alert is more important.
            log.warning("Sending without throttle: its Airflow Variable failed: %s", error)
            self.seconds = 0
            return 0
        return unsent

    def release(self) -> None:
        """Undo a claim: the mail was not sent after all, and counts as held back."""
        if self.seconds:
            sent_at, unsent = self._before
            _, meanwhile = self._read()
            self._write(sent_at, unsent + meanwhile + 1)

    def _read(self) -> tuple[float, int]:
        # By position: the default is `default` in Airflow 3 and `default_var` in Airflow 2.
        text = Variable.get(self.key, None)
        try:
            found = json.loads(text)
            return float(found["sent_at"]), int(found["unsent"])
        except (TypeError, ValueError, KeyError):
            return 0.0, 0  # it doesn't exist yet, or somebody edited it

    def _write(self, sent_at: float, unsent: int) -> None:
        value = json.dumps({"sent_at": sent_at, "unsent": unsent})
        Variable.set(self.key, value, description=self.about)


class _Letter(TypedDict):
    """The parameters of `R7MailHook.send_message`."""

    to: tuple[str, ...]
    subject: str
    html_content: str
    cc: tuple[str, ...]
    bcc: tuple[str, ...]
    files: Any
    after_sending: AfterSending


class R7MailNotifier(TemplateFiles, BaseNotifier):
    """Send a mail from a callback of a task, a DAG or a deadline.

    A failing notifier doesn't fail its caller: it logs the reason. An alert is not sent again if it
    is unclear whether it was sent (R23). A template that can't be rendered doesn't stop an alert:
    the default text is sent, with the error.

    With `throttle`, at most one mail with the same key is sent in that time; the next mail says how
    many were not sent. The time of the last mail is kept in an Airflow Variable
    `r7mail_throttle_...`, which all workers share. Two callbacks at the same instant may both send.

    :param to: addresses: a list, or text with commas (templated)
    :param subject: the subject; line breaks become spaces; made from the context if None
        (templated)
    :param html_content: the body in HTML, or the path of an `.html` or `.txt` template; made from
        the context if None. Values are not escaped: write `{{ exception | e }}`, which only
        callbacks of failed and retried tasks have (templated)
    :param cc: addresses, like `to` (templated)
    :param bcc: addresses, like `to` (templated)
    :param files: files to upload to the server's Disk and to attach, as in `R7MailSendOperator`;
        small ones, since a callback has 10 seconds. If one can't be attached, nothing is sent
        (templated)
    :param after_sending: `keep` keeps the uploaded files on the Disk, `delete` deletes them
    :param throttle: minimum time between two mails with the same key, a timedelta or seconds; None
        sends every mail
    :param throttle_key: mails with the same key share a throttle; by default, mails about the same
        DAG, task and event to the same addresses do (templated)
    :param r7mail_conn_id: id of the Airflow connection (templated)
    """

    template_fields: Sequence[str] = (
        "to",
        "subject",
        "html_content",
        "cc",
        "bcc",
        "files",
        "throttle_key",
        "r7mail_conn_id",
    )
    template_ext: Sequence[str] = (".html", ".txt")

    def __init__(
        self,
        to: str | Iterable[str],
        subject: str | None = None,
        html_content: str | None = None,
        *,
        cc: str | Iterable[str] | None = None,
        bcc: str | Iterable[str] | None = None,
        files: Any = None,
        after_sending: AfterSending = "keep",
        throttle: timedelta | float | None = timedelta(minutes=10),
        throttle_key: str | None = None,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **kwargs: Any,  # Airflow 3.1 and later pass a deadline's context
    ) -> None:
        super().__init__(**kwargs)
        self.to = to
        self.subject = subject
        self.html_content = html_content
        self.cc = cc
        self.bcc = bcc
        self.files = files
        self.after_sending = after_sending
        self.throttle = throttle
        self.throttle_key = throttle_key
        self.r7mail_conn_id = r7mail_conn_id
        self._unrendered: dict[str, str] = {}

    def __call__(self, *args: Any) -> None:
        """Render the templates and send, as a callback that Airflow calls."""
        # Rendering modifies the notifier, which several tasks and runs may share.
        with self._logging_failure():
            super(R7MailNotifier, copy(self)).__call__(*args)

    def __await__(self) -> Generator[Any, None, None]:
        """Render the templates and send, as a callback that the triggerer awaits."""
        return self._render_and_notify().__await__()

    async def _render_and_notify(self) -> None:
        with self._logging_failure():
            self._update_context(self.context)
            self.render_template_fields(self.context)
            await self.async_notify(self.context)

    def render_template_fields(
        self, context: Context, jinja_env: jinja2.Environment | None = None
    ) -> None:
        """Render the templates. Where one can't be rendered, its default is used.

        Names that a template uses may be missing in some callbacks and some runs.
        """
        env = jinja_env or self.get_template_env(context.get("dag"))
        self._unrendered = {}
        for name in self.template_fields:
            template = getattr(self, name)
            if template is None:
                continue
            try:
                # Only the body may be in a file: a subject may end in `.txt`.
                if name == "html_content" or not isinstance(template, str):
                    value = self.render_template(template, context, env)
                else:
                    value = self._render(env.from_string(template), context)
            except Exception as error:
                if name in REQUIRED:
                    raise
                # The message may contain text of the mail.
                self.log.warning(
                    "R7MailNotifier: %s can't be rendered: %s. Its default is used.",
                    name,
                    type(error).__name__,
                )
                self._unrendered[name] = f"{type(error).__name__}: {error}\n{template}"
                value = None
            setattr(self, name, value)

    def get_template_env(self, dag: DAG | None = None) -> jinja2.Environment:
        """Return the environment that templates are rendered in."""
        # The DAG that `airflow dags test` passes to DAG callbacks has no such method.
        if hasattr(dag, "get_template_env"):
            return super().get_template_env(dag)
        env = super().get_template_env()
        # As with a DAG: otherwise a missing name leaves a gap in the text.
        env.undefined = StrictUndefined
        return env

    def notify(self, context: Context) -> None:
        """Send the mail, unless it is throttled. A failure is logged, not raised."""
        with self._logging_failure():
            letter = self._letter(context)
            # Deadline callbacks that executors run can't write Variables: Airflow 3.3 never
            # responds, and the process would wait forever.
            throttle = self._throttle(context, letter, possible="deadline" not in context)
            unsent = throttle.claim()
            if unsent is None:
                self._log_held_back(throttle)
                return
            try:
                accepted = self._send(_with_unsent(letter, unsent))
            except R7MailSendUnclearError:
                raise
            except Exception:
                throttle.release()
                raise
            self._log_accepted(accepted["id"])

    async def async_notify(self, context: Context) -> None:
        """Send the mail, unless it is throttled. A failure is logged, not raised."""
        with self._logging_failure():
            letter = self._letter(context)
            throttle = self._throttle(context, letter)
            unsent = await asyncio.to_thread(throttle.claim)
            if unsent is None:
                self._log_held_back(throttle)
                return
            try:
                hook = R7MailHook(self.r7mail_conn_id)
                try:
                    async with asyncio.timeout(SEND_SECONDS):
                        accepted = await hook.asend_message(**_with_unsent(letter, unsent))
                except TimeoutError as error:
                    raise _too_slow() from error
            except R7MailSendUnclearError:
                raise
            except Exception:
                await asyncio.to_thread(throttle.release)
                raise
            self._log_accepted(accepted["id"])

    def _send(self, letter: _Letter) -> Accepted:
        hook = R7MailHook(self.r7mail_conn_id)
        # Airflow's API is not for other threads: read connections here.
        hook.settings  # noqa: B018
        letter = {**letter, "files": find_files(letter["files"])}
        try:
            return run_within(SEND_SECONDS, lambda: hook.send_message(**letter))
        except TimeoutError as error:
            raise _too_slow() from error

    @contextmanager
    def _logging_failure(self) -> Iterator[None]:
        try:
            yield
        except R7MailError as error:
            # Its message contains ids only.
            self.log.error("R7MailNotifier: %s", error)  # noqa: TRY400
        except Exception:
            # An alert must not fail the caller.
            self.log.exception("R7MailNotifier: the mail was not sent")

    def _log_accepted(self, message_id: int | None) -> None:
        self.log.info("The server accepted message %s. It may not be delivered yet.", message_id)

    def _log_held_back(self, throttle: _Throttle) -> None:
        self.log.info(
            "Not sent: a mail like this was sent less than %g seconds ago. The next one will say "
            "how many were not sent.",
            throttle.seconds,
        )

    def _throttle(self, context: Context, letter: _Letter, *, possible: bool = True) -> _Throttle:
        seconds = self.throttle or 0
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds < 0:
            raise R7MailConfigError("throttle: expected seconds, a timedelta or None.")
        key = _given(self.throttle_key)
        about = key or " ".join([*filter(None, _whose(context)), _event(context)])
        kept = [about] if key else [about, letter["to"], letter["cc"], letter["bcc"]]
        return _Throttle(
            seconds=seconds if possible else 0,
            key=f"r7mail_throttle_{hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:24]}",
            about=f"When R7MailNotifier last sent a mail, and how many it held back since: {about}",
        )

    def _letter(self, context: Context) -> _Letter:
        subject = _given(self.subject) or _subject(context)
        html = _given(self.html_content) or _html(context)
        return {
            "to": parse_addresses(self.to, "to"),
            # An exception with two lines must not make the alert fail.
            "subject": re.sub(r"[\s\x00]+", " ", subject).strip(),
            "html_content": html + _unrendered_note(self._unrendered),
            "cc": parse_addresses(self.cc, "cc"),
            "bcc": parse_addresses(self.bcc, "bcc"),
            "files": self.files,
            "after_sending": self.after_sending,
        }


send_r7mail_notification = R7MailNotifier


def _too_slow() -> R7MailSendUnclearError:
    return R7MailSendUnclearError(
        f"it is unclear whether the alert was sent: no answer within {SEND_SECONDS:g} seconds",
        method="POST",
        path="/api/v1/email/Send",
        hint="It was not sent again, so that other callbacks need not wait.",
    )


def _given(value: object) -> str:
    """Return a rendered value as text; empty for None, of which a template makes "None"."""
    text = str(value)
    return "" if text.strip() == "None" else text


def _unrendered_note(errors: Mapping[str, str]) -> str:
    lines = [
        f"<li>{name}: <pre>{escape(str(redact(error))[:MAX_EXCEPTION_CHARS])}</pre></li>"
        for name, error in errors.items()
    ]
    return (
        f"<p>These templates could not be rendered:</p><ul>{''.join(lines)}</ul>" if lines else ""
    )


def _with_unsent(letter: _Letter, unsent: int) -> _Letter:
    if not unsent:
        return letter
    # "At least": see _Throttle.
    note = "Not sent since the last mail like this, because of the throttle or a failure: at least"
    return {**letter, "html_content": f"{letter['html_content']}<p>{note} {unsent}.</p>"}


def _value(thing: Any, *names: str) -> str:
    """The first value found under some names: deadlines have a run's JSON instead of a run."""
    for name in names:
        value = thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
        if value is not None:
            return str(getattr(value, "value", value))  # Airflow's states are enums
    return ""


def _task_instance(context: Context) -> Any:
    """The task instance to report. A DAG's callback gets an arbitrary one, maybe without state."""
    ti = context.get("ti")
    if "reason" not in context:
        return ti
    failed = context["reason"] == "task_failure" and _value(ti, "state") in {"", "failed"}
    return ti if failed else None


def _whose(context: Context) -> tuple[str, str]:
    """Ids of DAG and task; the latter is empty for a DAG's callback."""
    dag_id = _value(context.get("dag"), "dag_id") or _value(context.get("dag_run"), "dag_id")
    return dag_id, "" if "reason" in context else _value(context.get("ti"), "task_id")


def _event(context: Context) -> str:
    """What happened: a task's state, a DAG run's reason, or a missed deadline."""
    if "deadline" in context:
        return "deadline missed"
    ti = context.get("ti")
    return _value(context, "reason") or _value(ti, "state") or _state_after_kill(context)


def _state_after_kill(context: Context) -> str:
    """The state of a task whose worker died: the DAG processor doesn't pass it to callbacks."""
    ti = context.get("ti")
    tries = _value(ti, "try_number")
    if not tries:
        return "notification"
    retries = max(
        int(_value(ti, "max_tries") or 0), int(_value(context.get("task"), "retries") or 0)
    )
    return "up_for_retry" if int(tries) <= retries else "failed"


def _subject(context: Context) -> str:
    dag_id, task_id = _whose(context)
    whose = f"{dag_id}.{task_id}" if task_id else dag_id
    return f"Airflow: {whose or 'alert'}: {_event(context)}"


def _html(context: Context) -> str:
    """What the context says, as a table. Values are escaped, and known secrets are masked."""
    dag_run = context.get("dag_run")
    ti = _task_instance(context)
    run_id = _value(context, "run_id") or _value(dag_run, "run_id", "dag_run_id")
    dag_id, _ = _whose(context)
    exception = str(redact(_value(context, "exception")))
    link = _value(ti, "log_url") or _run_url(dag_id, run_id)
    rows = {
        "DAG": dag_id,
        "Run": run_id,
        "Task": _value(ti, "task_id"),
        "Map index": _value(ti, "map_index").replace("-1", ""),
        "Try": _value(ti, "try_number"),
        "What": _event(context),
        "Needed by": _value(context.get("deadline"), "deadline_time"),
        "Exception": exception[:MAX_EXCEPTION_CHARS],
    }
    cells = {name: escape(text) for name, text in rows.items() if text}
    if link.startswith(("http://", "https://")):
        cells["Look"] = f"<a href='{escape(link)}'>{escape(link)}</a>"
    lines = [
        f"<tr><th align='left'>{name}</th><td>{text}</td></tr>" for name, text in cells.items()
    ]
    return f"<table>{''.join(lines)}</table>"


def _run_url(dag_id: str, run_id: str) -> str:
    base: str = conf.get("api", "base_url", fallback="") or ""
    if not (base and dag_id and run_id):
        return ""
    return f"{base.rstrip('/')}/dags/{quote(dag_id)}/runs/{quote(run_id, safe='')}"
