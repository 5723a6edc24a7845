"""The README is true: its links, badges, names and examples work as written."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

import airflow_provider_r7mail
from airflow_provider_r7mail.connection import config_from_connection
from airflow_provider_r7mail.emulator import Emulator

ROOT = Path(airflow_provider_r7mail.__file__).parents[1]
HOUR = timedelta(hours=1)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, place: int = 0) -> str:
    """A block of code of the README."""
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return found[place]


def test_it_is_short() -> None:
    """A newcomer reads it in some minutes."""
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("link", sorted(set(re.findall(r"(?:\]\(|src=\")([^)\"]+)", README))))
def test_links_lead_somewhere(link: str) -> None:
    """A link leads to a file that exists, or to a section of the page."""
    if link.startswith("https://"):
        return
    if link.startswith("#"):
        titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert link[1:] in slugs
    else:
        assert (ROOT / link).exists()


def test_badges_are_true() -> None:
    """The badges show the licence, and the versions of Python and Airflow that the tests run on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [pairs] = re.findall(r"^NEWEST := (.*)$", makefile, re.MULTILINE)
    airflow, python = (sorted({pair.split("-")[i] for pair in pairs.split()}) for i in (0, 1))
    [older] = re.findall(r"^OLDER := (.*)$", makefile, re.MULTILINE)
    airflow = sorted({*airflow, *re.findall(r"newest-(\d+\.\d+)", older)})
    badges = re.findall(r"!\[(\w+): ([^]]+)\]\((docs/images/badge-[^)]+)\)", README)

    assert {label: value for label, value, _ in badges} == {
        "Licence": project["license"].replace("-", " "),
        "Python": ", ".join(python),
        "Airflow": ", ".join(airflow),
    }
    for label, value, path in badges:
        assert f"<title>{label}: {value}</title>" in (ROOT / path).read_text(encoding="utf-8")


def test_the_connection_is_one() -> None:
    """The connection to copy is read as it stands."""
    from airflow.sdk import Connection  # noqa: PLC0415 - reads the configuration

    [text] = re.findall(r"AIRFLOW_CONN_R7MAIL_DEFAULT='(.*?)'", README, re.DOTALL)
    settings = config_from_connection(Connection.from_json(text, conn_id="r7mail_default"))

    assert settings.client.url == "https://mail.example.org"
    assert settings.folders == {"inbox": 24, "processed": 15}


def test_the_dag_to_copy_runs(
    server: Emulator, run_dag: Callable[[str], Any], tmp_path: Path
) -> None:
    """The DAG runs as it stands, and the query under the tables reads what it has written."""
    this_hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    for age in range(-1, 4):  # a run by hand takes the hour before the one that is
        server.mailbox.deliver(sender="bob@example.org", date=this_hour - age * HOUR)
    there = "/tmp/r7mail"

    result = run_dag(block("python").replace(there, str(tmp_path)))

    assert result.state == "success", result.states
    assert result.xcom("extract")["messages"] == 1
    found = duckdb.sql(block("sql").strip().rstrip(";").replace(there, str(tmp_path)))
    assert found is not None
    assert found.fetchall() == [("bob@example.org", 1)]
    [sent] = server.mailbox.sent
    assert sent["To"] == ["ann@example.org"]
    assert "Messages: 1" in sent["HtmlBody"]


def test_names_in_the_table_exist() -> None:
    """Every class the README names is there to import."""
    named = re.findall(r"`(\w+)\.(R7Mail\w+)`", README)
    assert len(named) >= 9
    for module, name in named:
        found = __import__(f"airflow_provider_r7mail.{module}", fromlist=[name])
        assert hasattr(found, name)
