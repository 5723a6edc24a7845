"""What errors look like (R16)."""

from __future__ import annotations

from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Level, Subject, Verdict

_NO_PATH = "/api/v1/email/R7MailCheckNoSuchCall"
# A folder that no server has, in the range of .NET's Int32.
_NO_FOLDER = 2_147_483_647

_BY_STATUS = "Goes by the status and the type of the body, not by its text."


class WrongPath(Question):
    """How the server responds to a path that doesn't exist."""

    about = "errors"
    subjects = (Subject("wrong_path", "R16", "Error for a wrong path", _BY_STATUS),)

    def ask(self, inquiry: Inquiry) -> Findings:
        """Request such a path."""
        call = calls.Call(method="POST", path=_NO_PATH, parse=bytes, body={})
        answer = inquiry.look(call, counted=False)
        level: Level = "note" if answer.status == 200 else "ok"
        return {"wrong_path": (level, answer.form, answer.told)}


class MissingFolder(Question):
    """How the server responds to a folder that doesn't exist."""

    about = "errors"
    subjects = (
        Subject("missing_folder", "R16", "Error for a missing folder", _BY_STATUS),
        Subject(
            "refusal",
            "R25",
            "What is not there",
            "Tells it from a dead token by a request that has been served before.",
        ),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """List such a folder."""
        call = inquiry.list_call(10, folder=_NO_FOLDER)
        answer = inquiry.look(call, counted=False)
        if answer.status != 200:
            refusal: Verdict = "ok", str(answer.status), f"status {answer.status}"
            return {
                "missing_folder": ("ok", answer.form, answer.told),
                "refusal": refusal,
            }
        listing, _ = inquiry.interpret(call, answer)
        if listing["Items"]:
            says = "messages: folderId seems to have no effect"
            return {"missing_folder": ("outside", "messages", says)}
        says = "none: a wrong folder id looks like an empty folder"
        return {"missing_folder": ("note", "an empty folder", says)}


QUESTIONS = (WrongPath, MissingFolder)
