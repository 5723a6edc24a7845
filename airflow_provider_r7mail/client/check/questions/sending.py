"""Whether a message can be sent without a draft (R39). Sends one."""

from __future__ import annotations

from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject


class NoDraft(Question):
    """Send one message with `Id: 0`."""

    about = "sending"
    sends = True
    subjects = (
        Subject("drafts_only", "R39", "Sending without a draft", "Names `draft_id` in the error."),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """Send it, once."""
        assert inquiry.send_to is not None  # noqa: S101 - else it is not asked
        call = calls.send_message(
            subject="r7mail check",
            text="r7mail check has sent this message to see whether the server accepts it.",
            html="<p>r7mail check has sent this message to see whether the server accepts it.</p>",
            to=inquiry.send_to,
        )
        answer = inquiry.look(call, counted=False)
        if answer.status == 200:
            return {"drafts_only": ("ok", False, "accepted; look whether it arrives")}
        if answer.status in {400, 403, 406}:
            says = f"refused ({answer.told}): perhaps only drafts can be sent, by their draft_id"
            return {"drafts_only": ("warning", True, says)}
        return {"drafts_only": ("unknown", None, f"{answer.told}: it may have been sent or not")}


QUESTIONS = (NoDraft,)
