"""Mark a message invisibly, so that it can be recognised in the Sent folder. No I/O, no Airflow."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_r7mail.client.compose import before_body_end

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.calls import Call
    from airflow_provider_r7mail.client.models import Message

MARKER = re.compile(r"r7mail-([0-9a-f]{16})-([0-9a-f]{16})")
_HIDDEN = "display:none;mso-hide:all;max-height:0;overflow:hidden;line-height:0"


def _digest(*names: object) -> str:
    return hashlib.sha256(json.dumps(names, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Marker:
    """Text in a message's HTML that identifies it, without revealing what it is made from.

    :param place: hash of where the message comes from: DAG, run, task, map index
    :param recipients: hash of DAG, run, task and recipients. If the list that a task is mapped
        over changes between tries, a recipient may get another map index
    """

    place: str
    recipients: str

    @classmethod
    def of(
        cls,
        task: Sequence[str],
        map_index: int,
        recipients: Iterable[str],
        part: int | str = "",
    ) -> Self:
        """Derive the marker of a task's message, which is the same in each of its tries.

        :param task: DAG id, run id and task id
        :param map_index: the task's map index, -1 for none
        :param recipients: all addresses of the message
        :param part: which message it is, for a task that sends several
        """
        return cls(
            place=_digest(*task, map_index, part),
            recipients=_digest(*task, part, sorted({text.casefold() for text in recipients})),
        )

    @classmethod
    def random(cls) -> Self:
        """Create a marker for a message that doesn't come from a task."""
        number = uuid.uuid4().hex
        return cls(number[:16], number[16:])

    @classmethod
    def find(cls, text: str) -> set[Self]:
        """Return all markers in a text."""
        return {cls(*found) for found in MARKER.findall(text)}

    def __str__(self) -> str:
        return f"r7mail-{self.place}-{self.recipients}"

    def put_into(self, call: Call[Message]) -> Call[Message]:
        """Return the call with the marker hidden in its HTML, and other markers removed.

        The marker is the text of an element at the end: previews show the beginning, and text
        survives where comments, attributes or styles are stripped. Other markers come from quoted
        mail.
        """
        body = dict(call.body or {})
        body["HtmlBody"] = before_body_end(
            MARKER.sub("r7mail", body["HtmlBody"]),
            f'<div aria-hidden="true" style="{_HIDDEN}">{self}</div>',
        )
        return replace(call, body=body)


def recipients_of(call: Call[Any]) -> list[str]:
    """Return all addresses that a message goes to."""
    body = call.body or {}
    return [address for kind in ("To", "Cc", "Bcc") for address in body.get(kind, ())]
