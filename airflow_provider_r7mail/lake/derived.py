"""Derive the rows of the recipients and attachments tables from a batch of messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.sizes import SizeFit, size_fit, stated
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.arrays import int64_array, one_batch, text_array, zeros
from airflow_provider_r7mail.lake.schema import schema

if TYPE_CHECKING:
    import pyarrow as pa


def domains_of(addresses: pa.Array) -> pa.Array:
    """Return the domains of mail addresses in lower case; null where an address has none."""
    import pyarrow.compute as pc

    distinct = addresses.dictionary_encode()  # most addresses repeat
    # The part after the last @, without the > of "Name <address>".
    found = pc.extract_regex(distinct.dictionary, r"^.*@(?P<domain>[^@>\s]+)[>\s]*$")
    return pc.utf8_lower(pc.struct_field(found, "domain")).take(distinct.indices)


def recipients_of(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the recipients of a batch of messages: a row for each address in To, Cc and Bcc."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = []
    for kind in ("to", "cc", "bcc"):
        lists = batch[f"{kind}_addresses"]
        rows = pc.list_parent_indices(lists)
        addresses = pc.list_flatten(lists)
        lengths = pc.list_value_length(lists)
        lengths = pc.coalesce(lengths, zeros(lengths.type, len(lengths)))
        firsts = pc.subtract(pc.cumulative_sum(lengths), lengths)
        positions = pc.subtract(int64_array(range(len(addresses))), firsts.take(rows))
        parts.append(
            pa.RecordBatch.from_arrays(
                [
                    batch["message_id"].take(rows),
                    text_array([kind]).take(zeros(pa.int64(), len(addresses))),
                    positions.cast(pa.int32()),
                    addresses,
                ],
                names=schema("recipients").names[:4],
            )
        )
    found = one_batch(parts)
    gone_at = pa.nulls(found.num_rows, pa.timestamp("us", tz="UTC"))
    return pa.RecordBatch.from_arrays(
        [*found.columns, domains_of(found["address"]), gone_at], schema=schema("recipients")
    )


@dataclass(slots=True)
class AttachmentRow:
    """A row of the attachments table: a file of a message and what happened to it.

    :param size: the size of the copy, or as listed if there is none
    :param listed_size: the size as listed (R26)
    :param status: `listed`, `downloaded`, `unchanged`, `skipped`, `failed`, `unlisted` (R17) or
        `ambiguous` (R18)
    """

    message_id: int
    attachment_id: int | None = None
    file_id: int | None = None
    file_name: str | None = None
    size: int | None = None
    mime_type: str | None = None
    uri: str | None = None
    sha256: str | None = None
    status: str = "listed"
    error: str | None = None
    listed_size: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.listed_size = self.size

    @property
    def size_fit(self) -> SizeFit | None:
        """How the listed size relates to that of the copy; None without one of them."""
        listed = stated(self.listed_size)
        copied = self.uri is not None and self.size is not None
        return size_fit(listed, self.size or 0) if copied and listed is not None else None


NAMELESS = "the listing gives no FileName, and the API takes nothing else (R38)"

UNAVAILABLE = frozenset({"unlisted", "ambiguous"})
"""The statuses of files that the API can't give, however often one asks."""

FATAL: Mapping[str, frozenset[str]] = {
    "fail": frozenset({"failed"}),
    "fail_on_missing": UNAVAILABLE | {"failed"},
    "record": frozenset(),
}
"""For each value of `on_attachment_error`, the statuses that fail the task."""


SIZE_MISMATCH = ("record", "fail")
"""The values of `on_size_mismatch`: what to do about a file of another size than listed (R26)."""


def check_size_mismatch(on_size_mismatch: str) -> None:
    """Check a value of `on_size_mismatch`.

    :raises R7MailConfigError: no such value
    """
    if on_size_mismatch not in SIZE_MISMATCH:
        raise R7MailConfigError(
            f"on_size_mismatch: {on_size_mismatch!r}. Known: {', '.join(SIZE_MISMATCH)}."
        )


def fatal_statuses(on_attachment_error: str) -> frozenset[str]:
    """Return the statuses that fail the task.

    :raises R7MailConfigError: no such value
    """
    if on_attachment_error not in FATAL:
        raise R7MailConfigError(
            f"on_attachment_error: {on_attachment_error!r}. Known: {', '.join(FATAL)}."
        )
    return FATAL[on_attachment_error]


def attachments_of(batch: pa.RecordBatch) -> list[AttachmentRow]:
    """Return the attachments of a batch of messages, also those that can't be named (R17, R18)."""
    import pyarrow.compute as pc

    files = batch["attachments"]
    lengths = pc.list_value_length(files)
    filled = pc.not_equal(lengths, zeros(lengths.type, len(lengths)))
    wanted = pc.or_kleene(filled, batch["has_attachments"])
    if not pc.any(wanted).as_py():
        return []
    rows: list[AttachmentRow] = []
    ids = batch["message_id"].filter(wanted).to_pylist()
    for message_id, listed in zip(ids, files.filter(wanted).to_pylist(), strict=True):
        rows += attachment_rows(message_id, listed or [])
    return rows


def attachment_rows(
    message_id: int, listed: Sequence[Mapping[str, Any] | None]
) -> Iterator[AttachmentRow]:
    """Return the rows of one message that has attachments.

    :param listed: its files in our columns; empty if the listing doesn't name them (R17)
    """
    if not listed:
        yield AttachmentRow(
            message_id,
            status="unlisted",
            error="HasAttachments is true, but the listing names no file",
        )
    names = Counter(file.get("file_name") for file in listed if file is not None)
    for file in listed:
        row = AttachmentRow(message_id, **(file or {}))
        if not row.file_name:
            row.status, row.error = "unlisted", NAMELESS
        elif names[row.file_name] > 1:
            row.status = "ambiguous"
            row.error = "the message has several files of this name; the API can't tell them apart"
        yield row


def attachments_batch(rows: Sequence[AttachmentRow]) -> pa.RecordBatch:
    """Return the rows as an Arrow batch."""
    import pyarrow as pa

    table = schema("attachments")
    arrays = []
    for column in table:
        values = [getattr(row, column.name, None) for row in rows]  # all but gone_at
        if column.type == pa.string():
            arrays.append(text_array(values))
        else:
            arrays.append(int64_array(values).view(column.type))
    return pa.RecordBatch.from_arrays(arrays, schema=table)
