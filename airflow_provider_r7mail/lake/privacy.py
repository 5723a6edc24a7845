"""Drop or hash personal data before anything is written.

A hash is the HMAC-SHA256 with the connection's key, as 64 hexadecimal digits. Equal texts have the
same hash in all tables, windows and runs, so joins still work. This is pseudonymisation: whoever
has the key can find a person by address, and other columns, such as dates, still reveal something.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.arrays import text_array
from airflow_provider_r7mail.lake.derived import domains_of

if TYPE_CHECKING:
    import pyarrow as pa


# What a policy can name, and its actions besides "keep".
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "subject": ("drop", "hash"),
    "body": ("drop", "hash"),
    "html_body": ("drop", "hash"),
    "addresses": ("drop", "hash", "domain"),
    "names": ("drop", "hash"),
    "file_names": ("hash",),
    "ids": ("drop", "hash"),
    "extra": ("drop",),
    "children": ("drop",),
    "task_id": ("drop",),
    "mailbox": ("hash",),
}
# The columns that each name covers, in all tables.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "subject": ("subject",),
    "body": ("body",),
    "html_body": ("html_body",),
    "addresses": (
        "from_address",
        "to_addresses",
        "cc_addresses",
        "bcc_addresses",
        "address",
        "domain",
    ),
    "names": ("from_name", "to_name"),
    # A MIME type may repeat the name: `text/csv; name="..."`.
    "file_names": ("file_name", "mime_type", "attachments"),
    # From other systems: MIME ids name the sender's host, CsMd5 identifies known content.
    "ids": (
        "mime_message_id",
        "mime_reply_to_id",
        "thread_id",
        "cs_md5",
        "cs_uid",
        "external_id",
    ),
    "extra": ("extra",),
    "children": ("children",),
    "task_id": ("task_id",),
}
_KEY_OF = {column: name for name, columns in COLUMNS.items() for column in columns}

# Extensions that a hashed file name keeps; any other may be part of the name.
EXTENSIONS = frozenset(
    """7z avi bmp csv doc docm docx dot dotx eml gif gz htm html ics jpeg jpg json md mov mp3 mp4
    msg odp ods odt ogg p7m p7s parquet pdf png ppt pptx rar rtf sig svg tar tif tiff tsv txt vcf
    wav webp xls xlsb xlsm xlsx xml zip zst""".split()  # noqa: SIM905 - a list would take 50 lines
)
_BARE_ADDRESS = re.compile(r"<([^<>]*)>\s*$")
_MIME_TYPE = r"^\s*(?P<type>[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+)\s*(?:;.*)?$"


@dataclass(frozen=True, slots=True)
class Privacy:
    """A policy: what to do with each part of the mail. An empty one changes nothing.

    :param actions: name -> action; use `build` to create it
    :param key: the key of the hashes
    """

    actions: Mapping[str, str] = field(default_factory=dict)
    key: bytes = field(default=b"", repr=False)

    @classmethod
    def build(cls, policy: Mapping[str, str] | None, secret: str | None) -> Self:
        """Check a policy, and add what it implies.

        If anything is protected, `extra`, `children` and `task_id` are dropped unless set to
        `keep`, since their content is unknown. If addresses are protected, `ids` are hashed, and
        `names` are hashed as addresses are, or else dropped.

        :param policy: names in `ACTIONS` -> "drop", "hash", "domain" or "keep"; None for none
        :param secret: the connection's `privacy_secret`
        :raises R7MailConfigError: an unknown name or action, or no key to hash with
        """
        if not isinstance(policy or {}, Mapping):
            raise R7MailConfigError(
                f"privacy: {type(policy).__name__} is not a mapping. It says what to protect "
                'and how, for example {"body": "drop", "addresses": "hash"}.'
            )
        given = dict(policy or {})
        for name, action in given.items():
            if name not in ACTIONS:
                raise R7MailConfigError(f"privacy: {name!r}. Known: {', '.join(ACTIONS)}.")
            known = (*ACTIONS[name], "keep")
            if action not in known:
                raise R7MailConfigError(f"privacy: {name}: {action!r}. Known: {', '.join(known)}.")
        implied: dict[str, str] = {}
        if any(action != "keep" for action in given.values()):
            implied = dict.fromkeys(("extra", "children", "task_id"), "drop")
        addresses = given.get("addresses", "keep")
        if addresses != "keep":
            implied |= {"names": "hash" if addresses == "hash" else "drop", "ids": "hash"}
        effective = {**implied, **given}
        actions = {
            name: effective[name] for name in ACTIONS if effective.get(name, "keep") != "keep"
        }
        hashed = [name for name, action in actions.items() if action == "hash"]
        if hashed and not (secret and secret.strip()):
            raise R7MailConfigError(
                f"privacy: {', '.join(hashed)} can't be hashed: the connection has no "
                "privacy_secret. Set it to a long random text, such as the output of `openssl rand "
                '-hex 32`, and never change it; or use "drop" instead.'
            )
        return cls(actions, (secret or "").encode() if hashed else b"")

    @property
    def active(self) -> bool:
        """Whether anything is protected."""
        return bool(self.actions)

    def record(self) -> dict[str, Any] | None:
        """Return the policy for the manifest; None if there is none.

        `key_id` identifies the key: hashes of different keys don't match.
        """
        if not self.actions:
            return None
        key_id = self.pseudonym("r7mail privacy key")[:16] if self.key else None
        return {"actions": dict(self.actions), "key_id": key_id}

    def protect(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of any table without what must not be written.

        :param batch: columns of `messages`, `recipients` or `attachments`
        """
        for place, column in enumerate(batch.schema):
            action = self.actions.get(_KEY_OF.get(column.name, ""))
            if action is not None:
                changed = self._protected(column.name, action, batch.column(place))
                batch = batch.set_column(place, column, changed)
        return batch

    def protect_stored(
        self, batch: pa.RecordBatch, earlier: Mapping[str, Any] | None
    ) -> pa.RecordBatch:
        """Return rows that an earlier run wrote without what must not be written.

        What that run protected in the same way stays. What it didn't protect is protected now, and
        what it protected otherwise becomes null. So do paths of files when their names are hashed.

        :param batch: columns of `messages`, `recipients` or `attachments`
        :param earlier: that run's policy, as `record` returns it, with no actions if it had none;
            None if it is unknown
        """
        import pyarrow as pa

        key_id = (self.record() or {}).get("key_id")
        for place, column in enumerate(batch.schema):
            name = _KEY_OF.get(column.name, "file_names" if column.name == "uri" else "")
            action = self.actions.get(name)
            if action is None:
                continue
            before = None if earlier is None else earlier["actions"].get(name, "keep")
            if before == action and (action != "hash" or (earlier or {})["key_id"] == key_id):
                continue
            values = batch.column(place)
            if before == "keep" and column.name != "uri":
                values = self._protected(column.name, action, values)
            else:
                values = pa.nulls(len(values), values.type)
            batch = batch.set_column(place, column, values)
        return batch

    def pseudonym(self, text: str) -> str:
        """Return the hash of a text, unchanged."""
        return _hash(self.key, text)

    def address(self, text: str) -> str:
        """Return the hash of a mail address, however it is written; see `normal_address`."""
        return self.name(normal_address(text))

    def name(self, text: str) -> str:
        """Return the hash of a name or domain, ignoring case and surrounding spaces."""
        return _normal_hash(self.key, text)

    def file_name(self, name: str) -> str:
        """Return a file's name for tables and storage: if hashed, with a common extension."""
        if "file_names" not in self.actions:
            return name
        ending = name.rpartition(".")[2].lower()
        return self.pseudonym(name) + (f".{ending}" if ending in EXTENSIONS else "")

    def mailbox(self, login: str) -> str:
        """Return the mailbox's name for paths and the manifest."""
        return self.address(login) if "mailbox" in self.actions else login

    def _protected(self, name: str, action: str, values: pa.Array) -> pa.Array:
        import pyarrow as pa
        import pyarrow.compute as pc

        if action == "drop":
            return pa.nulls(len(values), values.type)
        if name == "attachments":
            return _in_lists(self._protected_files, values)
        if name == "mime_type":
            return pc.struct_field(pc.extract_regex(values, _MIME_TYPE), "type")
        if action == "domain" and name == "domain":
            return values
        change = domains_of if action == "domain" else partial(_each, self._hasher(name))
        return _in_lists(change, values) if pa.types.is_list(values.type) else change(values)

    def _hasher(self, name: str) -> Callable[[str], str]:
        special = {"addresses": self.address, "names": self.name, "file_names": self.file_name}
        return special.get(_KEY_OF[name], lambda text: text and self.pseudonym(text))

    def _protected_files(self, files: pa.StructArray) -> pa.StructArray:
        import pyarrow as pa

        columns = [
            self._protected(column.name, "hash", values)
            if column.name in COLUMNS["file_names"]
            else values
            for column, values in zip(files.type, files.flatten(), strict=True)
        ]
        return pa.StructArray.from_arrays(columns, fields=list(files.type), mask=files.is_null())


def _hash(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256").hex()


@lru_cache(maxsize=1 << 14)  # the same people write again and again
def _normal_hash(key: bytes, text: str) -> str:
    normal = text.strip().casefold()
    return normal and _hash(key, normal)


def normal_address(text: str) -> str:
    """Return an address as it is hashed: `ann@example.org`, also for `Ann <ANN@example.org>`."""
    bare = _BARE_ADDRESS.search(text)
    return (bare[1] if bare else text).strip().casefold()


def _each(change: Callable[[str], str], texts: pa.StringArray) -> pa.StringArray:
    """Change each text, equal ones only once. Nulls stay null."""
    encoded = texts.dictionary_encode()
    changed = [change(text) for text in encoded.dictionary.to_pylist()]
    return text_array(changed).take(encoded.indices)


def _in_lists(change: Callable[[pa.Array], pa.Array], lists: pa.ListArray) -> pa.ListArray:
    """Change the values inside lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(lists):
        return lists
    offsets = lists.offsets
    first, end = offsets[0], offsets[-1]
    values = lists.values.slice(first.as_py(), end.as_py() - first.as_py())
    return pa.ListArray.from_arrays(
        pc.subtract(offsets, first), change(values), type=lists.type, mask=lists.is_null()
    )
