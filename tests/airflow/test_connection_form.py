"""The connection form, as Airflow's web server makes it: up to 3.1 from the hook."""

from __future__ import annotations

import json
import re
import warnings
from html import unescape
from importlib import import_module

import pytest

from airflow_provider_r7mail import get_provider_info
from airflow_provider_r7mail.compat import AIRFLOW
from airflow_provider_r7mail.connection import config_from_connection
from airflow_provider_r7mail.hooks import R7MailHook
from tests.conftest import AIRFLOW_2


@pytest.mark.skipif(AIRFLOW_2, reason="Airflow 2 makes the form as below")
def test_the_form_of_airflow_3() -> None:
    """Adding a connection, I find its type, and every field of it, whatever other providers do."""
    if AIRFLOW < (3, 2):
        pytest.importorskip("flask_appbuilder", reason="needs the fab provider before Airflow 3.2")
    name = "airflow.api_fastapi.core_api.services.ui.connections"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other providers' hooks
        forms = import_module(name).HookMetaService.hook_meta_data()

    [form] = [form for form in forms if form.connection_type == "r7mail"]
    [described] = get_provider_info()["connection-types"]
    assert form.hook_name == "R7-Office Mail"
    assert set(form.extra_fields) == set(described["conn-fields"])
    assert {
        name
        for name, field in form.extra_fields.items()
        if field["schema"].get("format") == "password"
    } == {"proxy", "privacy_secret"}
    assert form.standard_fields.host.title == "Host or URL"


@pytest.mark.skipif(not AIRFLOW_2, reason="Airflow 3 makes the form as above")
def test_saving_changes_nothing(airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form has every field, and saving it unchanged keeps the connection's settings."""
    monkeypatch.setenv("AIRFLOW__WEBSERVER__SECRET_KEY", "of-the-test")
    extra = {
        "verify": "/etc/ca.pem",
        "cert": ["cert.pem", "key.pem"],
        "proxy": "http://user:password@proxy:3128",
        "timeout": 30,
        "max_concurrency": 2,
        "max_retries": 1,
        "folders": {"inbox": 24, "Готово": 15},
        "web_url": "https://mail.example.org/#folder/{folder}",
        "privacy_secret": 'of "the" test',
        "disk_url": "https://cddisk.example.org",
        "disk_folder": 7,
    }
    [described] = get_provider_info()["connection-types"]
    assert set(extra) == set(described["conn-fields"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow's own
        app = import_module("airflow.www.app").create_app(testing=True)
        app.config["WTF_CSRF_ENABLED"] = False
        security = app.appbuilder.sm
        with app.app_context():
            security.add_user("admin", "a", "a", "a@b.ru", security.find_role("Admin"), "pw")
        browser = app.test_client()
        browser.post("/login/", data={"username": "admin", "password": "pw"})
        fields = {"conn_id": "mail", "conn_type": "r7mail", "host": "h", "login": "l"}
        fields |= {"password": "no-password", "extra": json.dumps(extra)}
        browser.post("/connection/add", data=fields)
        before = stored()
        number = R7MailHook.get_connection("mail").id  # type: ignore[attr-defined]
        page = browser.get(f"/connection/edit/{number}").text
        shown = re.findall(r'name="(extra__r7mail__\w+)".*? value="([^"]*)"', page)
        fields |= {name: unescape(value) for name, value in shown}
        browser.post(f"/connection/edit/{number}", data={**fields, "extra": ""})

    assert len(shown) == len(extra)
    for field in described["conn-fields"].values():
        assert field["label"] in unescape(page)
        assert field["description"] in unescape(page)
    assert re.findall(r'name="extra__r7mail__(\w+)".*? type="password"', page) == [
        "proxy",
        "privacy_secret",
    ]
    assert stored() == before
    assert before == config_from_connection(R7MailHook.get_connection("mail"))


def stored() -> object:
    """The settings of the connection in the database."""
    return config_from_connection(R7MailHook.get_connection("mail"))
