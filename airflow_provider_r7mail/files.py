"""Files that are attached to mail, as users give them: paths, and URLs of object storage."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from upath import UPath

from airflow_provider_r7mail.client.attaching import Uploads
from airflow_provider_r7mail.client.parameters import read_text, read_texts
from airflow_provider_r7mail.client.upload import Readable, Source
from airflow_provider_r7mail.compat import AirflowNotFoundException, BaseHook, ObjectStoragePath
from airflow_provider_r7mail.exceptions import R7MailConfigError

if TYPE_CHECKING:
    from airflow_provider_r7mail.connection import Settings
    from airflow_provider_r7mail.lake.storage import ObjectPath

AfterSending: TypeAlias = Literal["keep", "delete"]
"""What becomes of uploaded files once the message was sent."""

BLOCK_BYTES = 4 << 20
"""How much of a file in object storage is read at once."""

# As part of a header of the message, a line break would begin another one.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")


def open_storage(url: str, name: str, conn_id: str | None = None) -> ObjectStoragePath | UPath:
    """Make a path in a store from its URL, and find its Airflow connection.

    :param url: a URL of `parse_location`
    :param name: the parameter's name, for errors
    :param conn_id: the storage's Airflow connection; by default the one in the URL
    :raises R7MailConfigError: no installed library handles the URL, or there is no such connection
    """
    # Few DAG files need any: don't load the storage layers for the others.
    from airflow_provider_r7mail.lake.location import is_on_disk, no_store  # noqa: PLC0415

    if is_on_disk(url) and not conn_id:
        # For any URL, Airflow imports the stores of all providers: 0.1 s with Amazon's alone.
        return UPath(url)
    try:
        # Up to Airflow 3.0, a conn_id of None takes precedence over the one in the URL.
        path = ObjectStoragePath(url, **({"conn_id": conn_id} if conn_id else {}))
        # Airflow 2 has the connection only in the options.
        conn_id = getattr(path, "conn_id", None) or path.storage_options.get("conn_id")
        if conn_id:
            BaseHook.get_connection(conn_id)  # S3's file system would work without it
        # Here, where Airflow finds connections: it may be used in another thread.
        _ = path.fs
    except AirflowNotFoundException as error:
        hint = (
            " What stands before @ in a URL is the id of an Airflow connection, as in "
            "s3://connection@bucket/path. Azure's account belongs into the connection, too: "
            "abfs://connection@container/path."
        )
        raise R7MailConfigError(f"{name}: {error}.{hint if '@' in url else ''}") from error
    except (ImportError, ValueError) as error:
        raise no_store(name, url, error) from error
    return path


def find_uploads(
    files: Any,
    after_sending: AfterSending,
    settings: Settings,
    storage_conn_id: str | None = None,
) -> Uploads:
    """Return the uploads that a message needs. The files are not read yet.

    :param files: see `find_files`
    :param after_sending: whether to keep the uploaded files or to delete them
    :param settings: of the mail server's connection
    :param storage_conn_id: see `find_files`
    :raises R7MailConfigError: one of them is wrong
    """
    if after_sending not in {"keep", "delete"}:
        raise R7MailConfigError(f'after_sending: got {after_sending!r}. Give "keep" or "delete".')
    return Uploads(
        sources=find_files(files, storage_conn_id),
        disk_folder=settings.disk_folder,
        delete=after_sending == "delete",
    )


def find_files(files: Any, storage_conn_id: str | None = None) -> tuple[Source, ...]:
    """Return files as the client reads them. They are not read yet, and may be missing.

    :param files: absolute paths, URLs that `ObjectStoragePath` supports, or path objects: one, a
        list, or the text that a template makes of a list of texts
    :param storage_conn_id: Airflow connection of the object storage; by default the one in the URL
    :raises R7MailConfigError: one of them is neither a path nor a URL
    """
    conn_id = read_text(storage_conn_id, "storage_conn_id") or None
    if isinstance(files, str) or files is None:
        files = read_texts(files, "files")
    elif isinstance(files, (Source, PathLike)) or hasattr(files, "fs"):
        files = [files]
    if not isinstance(files, Iterable) or isinstance(files, (bytes, dict)):
        raise R7MailConfigError("files: expected paths or URLs: one, or a list.")
    return tuple(_find_file(item, place, conn_id) for place, item in enumerate(files))


def _find_file(item: Any, place: int, conn_id: str | None) -> Source:
    # Few DAG files attach any: don't load the storage layers for the others.
    from airflow_provider_r7mail.lake.location import parse_location  # noqa: PLC0415
    from airflow_provider_r7mail.lake.storage import url_of  # noqa: PLC0415

    if isinstance(item, Source):
        return item
    name = f"files[{place}]"
    path: Any = item
    if not hasattr(item, "fs"):
        if not isinstance(item, (str, PathLike)):
            raise R7MailConfigError(f"{name}: expected a path or URL, got {type(item).__name__}.")
        path = open_storage(parse_location(read_text(str(item), name), name), name, conn_id)
    if not path.name:
        raise R7MailConfigError(f"{name}: this is a folder. Give a file.")
    return Source(_UNSAFE.sub("_", path.name), url_of(path), partial(_open, path))


def _open(path: ObjectPath) -> Readable:
    stream: Readable = path.fs.open(path.path, "rb", block_size=BLOCK_BYTES)
    return stream
