"""Names of mailbox folders: asset URIs, `r7mail://login@host/folder`, and OpenLineage datasets.

Folders are named in this one place, so that the asset a DAG waits for, the outlet of an extract and
the dataset in a lineage graph are the same. Airflow imports this module for every asset with such a
URI, so it imports nothing heavy.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import Dataset as OpenLineageDataset
    from airflow.sdk import Asset

SCHEME = "r7mail"
# With or without TLS, it is the same mailbox.
DEFAULT_PORTS = {None, 80, 443}

_FORM = f"Write {SCHEME}://login@host/folder, like {SCHEME}://ann@mail.example.org/24"


def mailbox_uri(url: str, login: str, folder: int | str) -> str:
    """Return the asset URI of a folder: `r7mail://ann@mail.example.org/24`.

    :param url: the server: a host, `host:port`, or a URL as in `ClientConfig.url`, of which only
        host and port are used
    :param login: the account's login; characters that a URI can't hold, such as `@`, are quoted
    :param folder: the folder's id, or its name in the connection's `folders`. Ids are better for
        lineage, since they are the same in every connection
    :return: the URI in its normal form
    :raises ValueError: a part is missing or can't be in a URI
    """
    netloc = urlsplit(url if "://" in url else f"//{url}").netloc.rpartition("@")[2]
    path = f"/{quote(str(folder).strip(), safe='')}"
    parts = SplitResult(SCHEME, f"{quote(login, safe='')}@{netloc}", path, "", "")
    return urlunsplit(sanitize_uri(parts))


def create_asset(
    *, host: str, login: str, folder: int | str, extra: dict[str, Any] | None = None
) -> Asset:
    """Return the asset of a folder (`factory` in the provider info).

    :param host: the server: a host, `host:port` or a URL
    :param login: the account's login
    :param folder: the folder's id or name
    :param extra: the asset's extra
    :raises ValueError: a part is missing or can't be in a URI
    """
    from airflow_provider_r7mail.compat import Asset  # noqa: PLC0415 - as the docstring says

    return Asset(uri=mailbox_uri(host, login, folder), extra=extra)


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Check and normalize an asset URI (`handler` in the provider info).

    The host becomes lower case, the ports 80 and 443 are dropped, login and folder are quoted in
    one way, and an id loses leading zeros.

    :param uri: the parts of the URI; if it had a password, Airflow has removed it and the login
    :raises ValueError: it doesn't name a folder; the message says what to write
    """
    try:
        host, port = uri.hostname, uri.port
    except ValueError as error:
        raise ValueError(f"The port of an {SCHEME} URI must be a number. {_FORM}.") from error
    login = unquote(uri.netloc.rpartition("@")[0])
    if not login or uri.password is not None:
        raise ValueError(
            f"An {SCHEME} URI needs a login and no password. {_FORM}; write @ in the login as %40."
        )
    if not host or re.search(r"[\s\x00-\x1f\x7f%<>\"'\\^`{|}]", host):
        raise ValueError(f"An {SCHEME} URI needs the mail server's host. {_FORM}.")
    folder = unquote(uri.path.strip("/")).strip()
    if not folder or "/" in uri.path.strip("/"):
        raise ValueError(
            f"An {SCHEME} URI needs one folder after the host: its id, or its name in the "
            f"connection's `folders`. {_FORM}."
        )
    if uri.query or uri.fragment:
        raise ValueError(f"An {SCHEME} URI can't have a query or a fragment. {_FORM}.")
    if re.fullmatch(r"-?[0-9]+", folder):
        folder = str(int(folder))
    host = f"[{host}]" if ":" in host else host
    address = host if port in DEFAULT_PORTS else f"{host}:{port}"
    return SplitResult(
        SCHEME, f"{quote(login, safe='')}@{address}", f"/{quote(folder, safe='')}", "", ""
    )


def openlineage_dataset(uri: str) -> OpenLineageDataset:
    """Return the OpenLineage dataset of a folder: namespace `r7mail://host`, name `login/folder`.

    :param uri: the folder's URI, as returned by `mailbox_uri`
    :raises ValueError: it doesn't name a folder
    """
    from airflow.providers.common.compat.openlineage.facet import Dataset  # noqa: PLC0415

    parts = sanitize_uri(urlsplit(uri))
    login, _, address = parts.netloc.rpartition("@")
    return Dataset(
        namespace=f"{SCHEME}://{address}", name=f"{unquote(login)}/{unquote(parts.path[1:])}"
    )


def convert_asset_to_openlineage(asset: Asset, lineage_context: object) -> OpenLineageDataset:
    """Return the dataset of an asset (`to_openlineage_converter` in the provider info)."""
    return openlineage_dataset(asset.uri)
