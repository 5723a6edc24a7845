"""Names of folders, as users write them in assets and see them in lineage."""

from __future__ import annotations

import warnings

import pytest
from airflow.sdk import Asset
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

from airflow_provider_r7mail.assets import create_asset, mailbox_uri, openlineage_dataset


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("r7mail://ann@mail.example.org/24", "r7mail://ann@mail.example.org/24"),
        ("R7MAIL://ann@Mail.Example.ORG/24", "r7mail://ann@mail.example.org/24"),
        ("r7mail://ann@mail.example.org:443/24/", "r7mail://ann@mail.example.org/24"),
        ("r7mail://ann@mail.example.org:80/024", "r7mail://ann@mail.example.org/24"),
        ("r7mail://ann@mail.example.org:8443/24#top", "r7mail://ann@mail.example.org:8443/24"),
        ("r7mail://Ann@mail.example.org/inbox", "r7mail://Ann@mail.example.org/inbox"),
        ("r7mail://ann%40x.ru@mail.x.ru/inbox", "r7mail://ann%40x.ru@mail.x.ru/inbox"),
        ("r7mail://ann@x.ru@mail.x.ru/inbox", "r7mail://ann%40x.ru@mail.x.ru/inbox"),
        ("r7mail://ann@[::1]:8080/24", "r7mail://ann@[::1]:8080/24"),
        (
            "r7mail://ann@mail.example.org/Мои письма",
            "r7mail://ann@mail.example.org/%D0%9C%D0%BE%D0%B8%20%D0%BF%D0%B8%D1%81%D1%8C%D0%BC%D0%B0",
        ),
    ],
)
def test_one_folder_has_one_name(written: str, normal: str) -> None:
    """However a folder's asset URI is written, it is the same asset, in the normal form."""
    assert Asset(uri=written).uri == normal
    assert Asset(uri=normal).uri == normal


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("r7mail://mail.example.org/24", "needs a login"),
        ("r7mail://ann@/24", "needs the mail server's host"),
        ("r7mail://ann@a b/24", "needs the mail server's host"),
        ("r7mail://ann@mail.example.org", "one folder"),
        ("r7mail://ann@mail.example.org/a/b", "one folder"),
        ("r7mail://ann@mail.example.org/24?subject=x", "a query or a fragment"),
        ("r7mail://ann@mail.example.org:x/24", "port"),
    ],
)
def test_wrong_names(written: str, text: str) -> None:
    """A URI that names no folder is refused in the DAG file, with a hint how to write it."""
    with pytest.raises(ValueError, match=text) as caught:
        Asset(uri=written)
    assert "Write r7mail://login@host/folder" in str(caught.value)


def test_a_password_is_refused() -> None:
    """A password in a URI is refused, and the error doesn't contain it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow's own warning, before it calls our handler
        with pytest.raises(ValueError, match="no password") as caught:
            Asset(uri="r7mail://ann:hunter2@mail.example.org/24")
    assert "hunter2" not in str(caught.value)


def test_made_from_parts() -> None:
    """A connection's values give the same name, without scheme, path and default port."""
    name = "r7mail://ann%40x.ru@mail.x.ru/24"

    assert mailbox_uri("https://Mail.x.ru:443/office", "ann@x.ru", 24) == name
    assert mailbox_uri("http://mail.x.ru", "ann@x.ru", "24") == name
    assert mailbox_uri("mail.x.ru", "ann@x.ru", " 24 ") == name
    assert create_asset(host="mail.x.ru", login="ann@x.ru", folder=24) == Asset(uri=name)
    assert mailbox_uri("mail.x.ru:8443", "a", "a/b") == "r7mail://a@mail.x.ru:8443/a%2Fb"
    with pytest.raises(ValueError, match="needs a login"):
        mailbox_uri("mail.x.ru", "", 24)


def test_in_lineage() -> None:
    """In lineage, a folder is a readable dataset of its server, and Airflow finds the converter."""
    asset = Asset(uri="r7mail://ann%40x.ru@mail.x.ru:8443/inbox")
    manager = ProvidersManagerTaskRuntime()  # type: ignore[no-untyped-call]
    convert = manager._asset_to_openlineage_converters

    dataset = openlineage_dataset(asset.uri)

    assert (dataset.namespace, dataset.name) == ("r7mail://mail.x.ru:8443", "ann@x.ru/inbox")
    assert "r7mail" in manager.asset_uri_handlers
    assert convert["r7mail"](asset, None) == dataset
