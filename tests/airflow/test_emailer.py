"""The email backend: called as Airflow calls it, and by Airflow itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.utils import email as airflows

from airflow_provider_r7mail import get_provider_info
from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.emailer import send_email
from airflow_provider_r7mail.emulator import Emulator, Fault
from airflow_provider_r7mail.emulator.folders import SENT
from airflow_provider_r7mail.exceptions import R7MailAttachmentError, R7MailProxyError
from tests.conftest import AIRFLOW_2, CONNECTION

if TYPE_CHECKING:
    from tests.conftest import DagResult

BACKEND = "airflow_provider_r7mail.emailer.send_email"
LETTER: dict[str, Any] = {"to": "a@b.ru", "subject": "Prices", "html_content": "<p>See below</p>"}


@pytest.fixture
def configured(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """A mail server that Airflow is configured to send its own mail through."""
    monkeypatch.setenv("AIRFLOW__EMAIL__EMAIL_BACKEND", BACKEND)
    return server


def test_it_takes_what_airflow_gives() -> None:
    """It has the parameters of Airflow's function, in the same order, with the same defaults."""
    ours = inspect.signature(send_email).parameters
    theirs = inspect.signature(airflows.send_email).parameters

    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
    assert [p.kind for p in ours.values()] == [p.kind for p in theirs.values()]


def test_airflow_knows_it() -> None:
    """Airflow lists it among the email backends, and can import what is listed."""
    [listed] = get_provider_info()["email-backends"]

    assert listed == BACKEND == f"{send_email.__module__}.{send_email.__name__}"


def test_airflows_send_email_uses_it(configured: Emulator) -> None:
    """`airflow.utils.email.send_email` sends one mail through it, to all addresses."""
    airflows.send_email(
        ["a@b.ru", "c@d.ru"], "Prices", "<p>See below</p>", cc="e@f.ru; g@h.ru", bcc=["i@j.ru"]
    )

    [sent] = configured.mailbox.sent
    assert sent["Subject"] == "Prices"
    assert sent["HtmlBody"] == "<p>See below</p>"
    assert sent["Body"] == "See below"
    assert sent["To"] == ["a@b.ru", "c@d.ru"]
    assert sent["Cc"] == ["e@f.ru", "g@h.ru"]
    assert sent["Bcc"] == ["i@j.ru"]


@pytest.mark.parametrize(
    ("retries", "subjects"), [(0, 1), (1, 2)], ids=["failure", "retry and failure"]
)
def test_a_failing_task_mails_through_it(
    configured: Emulator, run_dag: Callable[[str], DagResult], retries: int, subjects: int
) -> None:
    """`email_on_failure` and `email_on_retry` send one mail for each failed try, escaped."""
    result = run_dag(f"""
        import warnings
        from datetime import timedelta
        from airflow.sdk import DAG, task

        with DAG("mails_{retries}") as dag:
            @task(email="a@b.ru; c@d.ru", email_on_failure=True, email_on_retry=True,
                  retries={retries}, retry_delay=timedelta(0))
            def load():
                raise ValueError("<script>")
            load()
    """)

    assert result.states == {"load": "failed"}
    assert len(configured.mailbox.sent) == subjects
    for number, sent in enumerate(configured.mailbox.sent, start=1):
        assert sent["To"] == ["a@b.ru", "c@d.ru"]
        assert sent["Subject"].startswith("Airflow alert: ")
        assert "load" in sent["Subject"]
        assert f"Try {number} out of {retries + 1}" in sent["HtmlBody"]
        if not AIRFLOW_2:  # it escapes nothing itself
            assert "&lt;script&gt;" in sent["HtmlBody"]


def test_a_failing_mail_server_changes_nothing(
    configured: Emulator, run_dag: Callable[[str], DagResult]
) -> None:
    """If the mail about a failure fails too, the task just fails, and no mail is sent twice."""
    configured.faults.append(Fault("Send", None, status=502, after_acting=True))
    result = run_dag("""
        from airflow.sdk import DAG, task

        with DAG("mails_unclear") as dag:
            @task(email="a@b.ru", email_on_failure=True)
            def load():
                raise ValueError
            load()
    """)

    assert result.states == {"load": "failed"}
    assert len(configured.mailbox.sent) == 1


def test_plain_text(server: Emulator) -> None:
    """With `mime_subtype="plain"` the text is sent unchanged, and escaped as HTML."""
    send_email("a@b.ru", "Prices", "a < b\nand *so* on", mime_subtype="plain")

    [sent] = server.mailbox.sent
    assert sent["Body"] == "a < b\nand *so* on"
    assert sent["HtmlBody"] == "<pre>a &lt; b\nand *so* on</pre>"


def test_files_are_attached(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are uploaded and attached; as with Airflow's own backend, a path may be relative."""
    (tmp_path / "a.csv").write_bytes(b"1")
    (tmp_path / "b.csv").write_bytes(b"2")
    monkeypatch.chdir(tmp_path)

    send_email(**LETTER, files=[str(tmp_path / "a.csv"), "b.csv"])

    [message] = server.mailbox.messages(SENT)
    files = server.mailbox.files(message["Id"])
    assert [(file.file_name, file.data) for file in files] == [("a.csv", b"1"), ("b.csv", b"2")]


def test_a_missing_file(server: Emulator) -> None:
    """If a file is missing, nothing is sent."""
    with pytest.raises(R7MailAttachmentError, match=r"/data/gone.csv.*no such file"):
        send_email(**LETTER, files=["/data/gone.csv"])

    assert server.mailbox.sent == []


def test_dry_run(server: Emulator, logged: Callable[[], str]) -> None:
    """A dry run checks the parameters, logs the counts and sends nothing."""
    send_email(**LETTER, dryrun=True, cc="c@d.ru, e@f.ru")

    assert server.requests == []
    assert "Dry run, nothing is sent: 1 to, 2 cc, 0 bcc." in logged()
    with pytest.raises(AirflowFailException, match="to: item 1"):
        send_email("nobody", "s", "h", dryrun=True)


def test_headers_are_ignored_aloud(server: Emulator, logged: Callable[[], str]) -> None:
    """The API has no headers: the log says how many were ignored, without their values."""
    send_email(**LETTER, custom_headers={"X-Secret": "hidden"}, from_email="x@y.ru")

    assert len(server.mailbox.sent) == 1
    assert "1 custom_headers" in logged()
    assert "hidden" not in logged()


@pytest.mark.parametrize("conn_id", [None, "smtp_default", "r7mail_default", "other"])
def test_connection(server: Emulator, monkeypatch: pytest.MonkeyPatch, conn_id: str | None) -> None:
    """`[email] email_conn_id` is used; Airflow's default means `r7mail_default`."""
    if conn_id == "other":
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", server.connection())
        monkeypatch.delenv(CONNECTION)

    send_email(**LETTER, conn_id=conn_id)

    assert len(server.mailbox.sent) == 1


def test_unclear_fails_a_task_at_once(server: Emulator) -> None:
    """If it is unclear whether a mail was sent, the task that sent it isn't retried (R23)."""
    server.faults.append(Fault("Send", None, status=502, after_acting=True))

    with pytest.raises(AirflowFailException, match="Sent folder"):
        send_email(**LETTER)
    assert len(server.mailbox.sent) == 1


def test_a_second_text_is_not_sent_after_an_unclear_first(server: Emulator) -> None:
    """Airflow 2's second text isn't sent if the first may have arrived; other mails are."""
    server.faults.append(Fault("Send", 1, status=502, after_acting=True))
    try:
        send_email(**LETTER)
    except AirflowFailException:
        with pytest.raises(AirflowFailException, match="Sent folder"):
            send_email(**LETTER | {"html_content": "another text"})
        assert len(server.mailbox.sent) == 1

        send_email(**LETTER | {"subject": "A send has failed"})
    else:
        pytest.fail("it was clear")
    send_email(**LETTER)

    assert len(server.mailbox.sent) == 3


@pytest.mark.slow
def test_a_mail_that_was_not_sent_is_an_error(server: Emulator) -> None:
    """If a mail was certainly not sent, an error is raised."""
    server.faults.append(Fault("Login", None, status=503))

    with pytest.raises(R7MailProxyError):
        send_email(**LETTER)
    assert server.mailbox.sent == []


def test_logs_hold_ids_only(server: Emulator, logged: Callable[[], str]) -> None:
    """The log contains the message's id, but no address, subject or text."""
    send_email("hidden@b.ru", "hidden", "hidden")

    text = logged()
    assert f"accepted message {server.mailbox.sent[0]['Id']}" in text
    assert "hidden" not in text
