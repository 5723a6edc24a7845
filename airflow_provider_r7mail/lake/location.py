"""Read the paths and URLs that users give for tables and attachments, and refuse slips.

A slip such as `s3:/bucket/mail` is a relative path to every library, and would be written to the
working directory of whatever process comes by.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from airflow_provider_r7mail.exceptions import R7MailConfigError

EXAMPLES = "/data/mail or s3://bucket/mail"
_LOCAL = frozenset({"file", "local"})
# What follows these schemes is first a bucket or container.
_BUCKETS = frozenset(
    {"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "az", "wasb", "wasbs", "oss"}
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


def parse_location(value: Any, name: str, base: Path | None = None) -> str:
    """Return the URL of a place to write to.

    :param value: an absolute path, or a URL of any store
    :param name: the parameter's name, for errors
    :param base: what a relative path is relative to; if None, there must be none
    :raises R7MailConfigError: it is empty, or a slip; it says what may have been meant
    """
    text = "" if value is None else str(value)
    if not text.strip():
        raise R7MailConfigError(f"{name}: empty. Give a path or URL, like {EXAMPLES}.")
    if text != text.strip():
        raise _slip(name, text, "it begins or ends with white space", text.strip())
    scheme, mark, rest = text.partition("://")
    if not mark:
        return f"file://{_parse_path(text, name, base)}"
    if not _SCHEME.fullmatch(scheme):
        raise _slip(name, text, f"{scheme!r} is not the name of a store", EXAMPLES)
    if scheme.lower() in _LOCAL:
        if not rest.startswith("/"):
            host = rest.partition("/")[0]
            path = rest.removeprefix("localhost/")
            raise _slip(name, text, f"{host!r} is taken for a host here", f"{scheme}:///{path}")
        _parse_path(rest, name, None)
    elif scheme.lower() in _BUCKETS and not rest.partition("/")[0].rpartition("@")[2]:
        meant = rest.replace("@/", "@", 1).lstrip("/") or "bucket/mail"
        raise _slip(name, text, "it names no bucket", f"{scheme}://{meant}")
    return f"{scheme.lower()}://{rest}"


def is_on_disk(url: str) -> bool:
    """Whether a URL of `parse_location` is on this machine's disk."""
    return url.partition("://")[0] in _LOCAL


def _parse_path(text: str, name: str, base: Path | None) -> str:
    """Return a path on disk, made absolute."""
    first, *others = text.lstrip("/").split("/")
    if first.startswith("~"):
        meant = str(Path(text.lstrip("/")).expanduser()) if first == "~" else EXAMPLES
        raise _slip(name, text, "~ is not expanded", meant)
    # pathlib makes one slash of two, and puts the working directory before it.
    for place, part in enumerate((first, *others)):
        scheme, colon, inside = part.partition(":")
        if colon and (not inside or place == 0) and _is_store(scheme):
            after = "/".join([inside, *others[place:]]).lstrip("/")
            slashes = ":///" if scheme.lower() in _LOCAL else "://"
            raise _slip(name, text, "this is a path on disk", f"{scheme}{slashes}{after}")
    if text.startswith("/"):
        return text
    if base is None:
        raise _slip(
            name,
            text,
            "a relative path depends on the working directory of the worker",
            f"an absolute path or a URL, like {EXAMPLES}",
        )
    return f"{base.absolute()}/{text}"


def _is_store(scheme: str) -> bool:
    from fsspec import available_protocols  # noqa: PLC0415 - DAG files read this module

    return scheme.lower() in _LOCAL | _BUCKETS or scheme.lower() in available_protocols()


def _slip(name: str, text: str, why: str, meant: str) -> R7MailConfigError:
    return R7MailConfigError(f"{name}: {text!r}: {why}. Write {meant}.")


def no_store(name: str, url: str, error: Exception) -> R7MailConfigError:
    """Return the error for a URL that no installed library handles."""
    return R7MailConfigError(
        f"{name}: no file system for {url.partition('://')[0]}:// is installed ({error}). S3 comes "
        "with airflow-provider-r7mail[amazon], Google with [google], Azure with [microsoft]."
    )
