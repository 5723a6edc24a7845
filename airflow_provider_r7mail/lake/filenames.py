"""Choose safe object names for attachments, and select attachments by their names.

Senders choose the names of attachments: they are hostile input (R19).
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from airflow_provider_r7mail.client.parameters import read_texts
from airflow_provider_r7mail.exceptions import R7MailConfigError

MAX_NAME_BYTES = 180  # even with the longest mark, less than the 255 of file systems

# Forbidden in names on Windows, special in shells, URLs or fsspec's globs, or invisible.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*%#&\[\]{}$`\'!;=~\u2028\u2029\ud800-\udfff]')
_RESERVED = re.compile(r"^(con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³]) *(\.|$)", re.IGNORECASE)
# Characters without width, which ext4 and other file systems ignore when they compare names
# (Unicode's Default_Ignorable_Code_Point, without format characters, which no safe name has).
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
MARK_DIGITS = 10
MAX_GLOBS = 1000
# `{a,b}` in a glob. Braces without a comma are part of the name, as in a shell.
_CHOICES = re.compile(r"\{([^{}]*,[^{}]*)\}")


def object_names(names: Sequence[str]) -> dict[str, str]:
    """Return the object names for the files of one message.

    A safe name is kept. Any other is made safe and marked with part of its checksum, and so are
    names that differ only in case: no two files collide, even where case is ignored. The result
    depends only on the names, so a rerun finds the same ones.

    :param names: the names in the listing
    :return: name -> object name, without a folder
    """
    safe = {name: _safe(name) for name in names}
    alike = _alike(safe.values())
    marked = {
        name: item if item == name and item not in alike else _marked(name, item)
        for name, item in safe.items()
    }
    # A short mark is readable, but somebody can look for two names that have the same one.
    alike = _alike(marked.values())
    return {
        name: item if item not in alike else _marked(name, safe[name], digits=64)
        for name, item in marked.items()
    }


def _alike(names: Collection[str]) -> set[str]:
    """Return the names that some file system may treat as equal to another one."""
    if len(names) < 2:  # most messages have one file
        return set()
    folded = {name: _folded(name) for name in names}
    counts = Counter(folded[name] for name in names)
    return {name for name in names if counts[folded[name]] > 1}


def _folded(name: str) -> str:
    """Return a text equal for all names that some file system may treat as equal."""
    # Unicode's NFKC_Casefold.
    text = unicodedata.normalize("NFKC", _IGNORABLE.sub("", name)).casefold()
    return unicodedata.normalize("NFKC", text).casefold().upper()


def _safe(name: str) -> str:
    text = unicodedata.normalize("NFC", name)
    text = "".join(
        "_" if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else c for c in text
    )
    text = re.sub(r"\.{2,}", "_", _UNSAFE.sub("_", text))
    # A leading underscore or dot hides a file from Spark, Hive and pyarrow. Windows drops trailing
    # dots and spaces.
    text = text.lstrip("_ .").rstrip(" .") or "file"
    if _RESERVED.match(text):
        text = f"file_{text}"
    return _shorten(text, MAX_NAME_BYTES)


def _shorten(text: str, limit: int) -> str:
    """Shorten to a number of bytes, keeping the extension."""
    if len(text.encode()) <= limit:
        return text
    stem, dot, extension = text.rpartition(".")
    tail = f"{dot}{extension}" if dot and stem and len(extension.encode()) <= 20 else ""
    head = text[: len(text) - len(tail)].encode()[: limit - len(tail.encode())]
    return head.decode(errors="ignore").rstrip(" .") + tail


def _marked(name: str, safe: str, digits: int = MARK_DIGITS) -> str:
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
    stem, dot, extension = safe.rpartition(".")
    return f"{stem}~{mark}{dot}{extension}" if dot and stem else f"{safe}~{mark}"


def name_filter(patterns: str | Iterable[str] | None) -> Callable[[str], bool]:
    """Return a function that tells whether a file name is wanted: whether any pattern matches.

    Case is ignored, and so is whether a letter such as `й` is one code point or two.

    :param patterns: a pattern or a list of them; also the text of a list, as a template renders it.
        A pattern that starts with `^` or ends with `$` is a regular expression to search for; any
        other is a glob, or several with `;` between them: `*.xlsx; *.xls`, `*.{xlsx,xls}`. Without
        any pattern all names are wanted
    :raises R7MailConfigError: not texts, not a valid regular expression, or too many globs
    """
    tests: list[Callable[[str], bool]] = []
    for pattern in read_texts(patterns, "attachment_pattern"):
        text = unicodedata.normalize("NFC", pattern.strip())
        if text.startswith("^") or text.endswith("$"):
            tests.append(_expression(text))
        else:
            tests += [partial(_matches, _folded_case(glob)) for glob in _globs(text)]
    if not tests:
        return lambda _: True

    def wanted(name: str) -> bool:
        normal = unicodedata.normalize("NFC", name)
        return any(test(normal) for test in tests)

    return wanted


def _expression(text: str) -> Callable[[str], bool]:
    try:
        expression = re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise R7MailConfigError(
            f"attachment_pattern: not a regular expression ({error}). Without ^ and $ it "
            "would be a glob, such as *.xlsx."
        ) from error
    return lambda name: expression.search(name) is not None


def _matches(glob: str, name: str) -> bool:
    return fnmatch.fnmatchcase(_folded_case(name), glob)


def _folded_case(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


def _globs(text: str) -> list[str]:
    """Return the globs in a text: between semicolons, and for each choice in braces."""
    parts = re.split(r";(?![^\[\]]*\])", text)  # `[;]` is a semicolon in a name
    globs = [part.strip() for part in parts if part.strip()]
    while found := [choices for glob in globs if (choices := _CHOICES.search(glob))]:
        globs = [glob for glob in globs if not _CHOICES.search(glob)] + [
            f"{one.string[: one.start()]}{choice.strip()}{one.string[one.end() :]}"
            for one in found
            for choice in one[1].split(",")
        ]
        if len(globs) > MAX_GLOBS:
            raise R7MailConfigError(
                f"attachment_pattern: the braces stand for more than {MAX_GLOBS} globs."
            )
    return globs
