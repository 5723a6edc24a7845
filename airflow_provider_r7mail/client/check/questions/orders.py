"""Whether messages can be listed by Id or Timestamp (R28): then what arrived last can be read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from airflow_provider_r7mail.client.check.evidence import Row
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown
from airflow_provider_r7mail.exceptions import R7MailResponseError

SIZE = 200


class Orders(Question):
    """Whether `orderField` takes other fields than Date."""

    about = "other orders"
    subjects = (
        Subject("order_id", "R28", "Listing by Id", "Lists by Date."),
        Subject("order_timestamp", "R28", "Listing by Timestamp", "Lists by Date."),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """List the folder by each of the fields."""
        return {
            "order_id": self._list(inquiry, "Id"),
            "order_timestamp": self._list(inquiry, "Timestamp"),
        }

    def _list(self, inquiry: Inquiry, field: str) -> Verdict:
        size = SIZE if inquiry.refused_size is None else inquiry.served_size
        call = inquiry.list_call(size, order_field=field)
        answer = inquiry.look(call)
        if answer.status != 200:
            return "note", "refused", f"refused: status {answer.status}"
        try:
            listing, _ = inquiry.interpret(call, answer)
        except R7MailResponseError:
            return "note", "refused", "refused: the response is no listing"
        rows = [Row.of(item) for item in listing["Items"] if isinstance(item, dict)]
        values = [_value(row, field) for row in rows]
        pairs = [
            (value, row.date.timestamp())
            for value, row in zip(values, rows, strict=True)
            if value is not None and row.date is not None
        ]
        return order_of([value for value, _ in pairs], [date for _, date in pairs])


def _value(row: Row, field: str) -> float | None:
    if field == "Id":
        return row.key
    return None if row.stored is None else row.stored.timestamp()


def order_of(values: Sequence[float], dates: Sequence[float]) -> Verdict:
    """Return what a listing is sorted by.

    :param values: the field asked for, in the order of the listing
    :param dates: the messages' dates
    """
    by_field, by_date = _is_sorted(values), _is_sorted(dates)
    if by_field and by_date:
        return unknown("the messages seen have the same order by Date")
    if by_field:
        return "ok", "works", "works"
    if by_date:
        return "note", "ignored", "has no effect: sorted by Date"
    return "note", "other", "sorted neither by it nor by Date"


def _is_sorted(values: Sequence[float]) -> bool:
    rises = any(a < b for a, b in pairwise(values))
    return not (rises and any(a > b for a, b in pairwise(values)))


QUESTIONS = (Orders,)
