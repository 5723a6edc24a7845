"""The connection's fields: their forms, and errors about wrong ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_r7mail import get_provider_info
from airflow_provider_r7mail.compat import Connection
from airflow_provider_r7mail.connection import config_from_connection, secrets_of
from airflow_provider_r7mail.exceptions import R7MailConfigError


def connection(extra: Any = None, **values: Any) -> Connection:
    """A valid connection, except for the given fields."""
    fields = {"host": "mail.example.org", "login": "ann", "password": "no-password", **values}
    text = extra if isinstance(extra, str) or extra is None else json.dumps(extra)
    return Connection(conn_id="mail", conn_type="r7mail", extra=text, **fields)


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({"host": "mail.example.org"}, "https://mail.example.org"),
        ({"host": "mail.example.org", "schema": "http"}, "http://mail.example.org"),
        ({"host": "mail.example.org", "port": 8443}, "https://mail.example.org:8443"),
        ({"host": "mail.example.org", "port": 0}, "https://mail.example.org"),
        ({"host": "mail.example.org:8443"}, "https://mail.example.org:8443"),
        ({"host": " mail.example.org/mail/ "}, "https://mail.example.org/mail"),
        ({"host": "http://10.0.0.1:8080/r7/"}, "http://10.0.0.1:8080/r7"),
        ({"host": "http://10.0.0.1", "port": 81, "schema": "https"}, "http://10.0.0.1:81"),
        ({"host": "::1", "port": 8080}, "https://[::1]:8080"),
        ({"host": "https://[::1]:8080"}, "https://[::1]:8080"),
        ({"host": "почта.рф"}, "https://почта.рф"),
    ],
)
def test_host_forms(values: dict[str, Any], url: str) -> None:
    """Host is a bare name or a full URL; Port and Schema supply what it leaves out."""
    assert config_from_connection(connection(**values)).client.url == url


def test_extra_is_read() -> None:
    """Every field of Extra is read, also from the text that a form saves."""
    extra = {
        "verify": "False",
        "cert": "a.pem, b.pem",
        "proxy": "http://u:secret@proxy:3128",
        "timeout": "2.5",
        "max_concurrency": "7",
        "max_retries": 0,
        "folders": '{"inbox": 24, "done": "15"}',
        "web_url": " https://mail.example.org/#folder/{folder} ",
        "disk_url": "cddisk.example.org",
        "disk_folder": "1001",
        "privacy_secret": "hash-key",
    }

    settings = config_from_connection(connection(extra))

    config = settings.client
    assert config.verify is False
    assert config.cert == ("a.pem", "b.pem")
    assert config.proxy == "http://u:secret@proxy:3128"
    assert (config.timeout, config.max_concurrency, config.max_retries) == (2.5, 7, 0)
    assert config.disk_url == "https://cddisk.example.org"
    assert settings.disk_folder == 1001
    assert settings.folders == {"inbox": 24, "done": 15}
    assert settings.folder_url(24) == "https://mail.example.org/#folder/24"
    assert settings.privacy_secret == "hash-key"
    assert "hash-key" not in repr(settings)


def test_nulls_and_empty_text_are_unset() -> None:
    """What Airflow's form saves for unset fields means the same as no Extra."""
    [form] = get_provider_info()["connection-types"]
    names = form["conn-fields"]

    for empty in (None, ""):
        settings = config_from_connection(connection(dict.fromkeys(names, empty)))

        assert settings == config_from_connection(connection())
    assert settings.client.verify is True
    assert settings.client.max_concurrency == 4
    assert settings.folder_url(24) is None


@pytest.mark.parametrize(
    ("extra", "verify", "cert"),
    [
        ({"verify": "TRUE"}, True, None),
        ({"verify": "/etc/ca.pem", "cert": "c.pem"}, "/etc/ca.pem", "c.pem"),
        ({"verify": False, "cert": ["c.pem", "k.pem"]}, False, ("c.pem", "k.pem")),
        ({"verify": "False", "cert": "['c.pem', 'k.pem']"}, False, ("c.pem", "k.pem")),
    ],
)
def test_tls_forms(extra: dict[str, Any], verify: object, cert: object) -> None:
    """`verify` and `cert` accept each of their forms."""
    config = config_from_connection(connection(extra)).client

    assert (config.verify, config.cert) == (verify, cert)


@pytest.mark.parametrize("value", [False, "false", " False "])
def test_a_connection_may_say_no_proxy(value: object) -> None:
    """`proxy` false, also as the form's text, means no proxy, and has no secret to mask."""
    settings = config_from_connection(connection({"proxy": value}))

    assert settings.client.proxy is False
    assert secrets_of(settings) == secrets_of(config_from_connection(connection()))


@pytest.mark.parametrize(
    ("field", "values", "extra"),
    [
        ("host", {"host": None}, None),
        ("host", {"host": "ftp://mail.example.org"}, None),
        ("host", {"host": "mail.example.org:port"}, None),
        ("host", {"host": "mail example"}, None),
        ("host", {"host": "https://user:hidden-pw@mail.example.org"}, None),
        ("host", {"host": "https://"}, None),
        ("schema", {"schema": "imap"}, None),
        ("login", {"login": None}, None),
        ("password", {"password": ""}, None),
        ("extra", {}, "not JSON hidden-pw"),
        ("extra", {}, "[1]"),
        ("verify", {}, {"verify": 1}),
        ("cert", {}, {"cert": "a,b,c"}),
        ("cert", {}, {"cert": {"a": 1}}),
        ("proxy", {}, {"proxy": "hidden-pw@proxy"}),
        ("proxy", {}, {"proxy": "socks5://u:hidden-pw@proxy"}),
        ("timeout", {}, {"timeout": 0}),
        ("timeout", {}, {"timeout": "soon"}),
        ("timeout", {}, {"timeout": "inf"}),
        ("max_concurrency", {}, {"max_concurrency": 0}),
        ("max_concurrency", {}, {"max_concurrency": 1.5}),
        ("max_retries", {}, {"max_retries": -1}),
        ("max_retries", {}, {"max_retries": True}),
        ("folders", {}, {"folders": [24]}),
        ("folders", {}, {"folders": "{"}),
        ("folders", {}, {"folders": {"inbox": "first"}}),
        ("folders", {}, {"folders": {"24": 15}}),
        ("web_url", {}, {"web_url": "mail.example.org"}),
        ("web_url", {}, {"web_url": "javascript:alert(1)"}),
        ("web_url", {}, {"web_url": "https://u:hidden-pw@mail.example.org/"}),
        ("web_url", {}, {"web_url": "https://mail.example.org/\nx"}),
        ("disk_url", {}, {"disk_url": "ftp://cddisk.example.org"}),
        ("disk_url", {}, {"disk_url": "https://u:hidden-pw@cddisk.example.org"}),
        ("disk_url", {}, {"disk_url": 1}),
        ("disk_folder", {}, {"disk_folder": "Airflow"}),
        ("disk_folder", {}, {"disk_folder": 0}),
        ("privacy_secret", {}, {"privacy_secret": 1}),
    ],
)
def test_wrong_fields_are_named(field: str, values: dict[str, Any], extra: Any) -> None:
    """The error names the connection and the wrong field, and shows no secret."""
    with pytest.raises(R7MailConfigError, match=f"'mail': {field}: ") as caught:
        config_from_connection(connection(extra, **values))

    assert "hidden-pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("time_out", "Did you mean 'timeout'?"),
        ("verfy", "Did you mean 'verify'?"),
        ("Folder", "Did you mean 'folders'?"),
        ("max_retrys", "Did you mean 'max_retries'?"),
        ("imap", "Known: folders, verify"),
    ],
)
def test_unknown_names_are_refused(name: str, nearest: str) -> None:
    """A misspelt field of Extra is an error that names the nearest one, not ignored."""
    with pytest.raises(R7MailConfigError, match=f"'mail': extra: .*{name!r}") as caught:
        config_from_connection(connection({name: "hidden-pw"}))

    assert nearest in str(caught.value)
    assert "hidden-pw" not in str(caught.value)
    assert config_from_connection(connection({name: None})).client.timeout == 60
