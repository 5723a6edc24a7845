"""The pytest fixture with which users test their own DAGs, and the how-to's example."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import AIRFLOW_2

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# Without the other plugins that are installed here: they warn, and import more.
STRICT = """
[pytest]
addopts = --strict-markers --strict-config -p no:cacheprovider -p no:asyncio -p no:anyio
filterwarnings = error
"""


def test_a_users_test_has_a_server(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a project that treats warnings as errors, each test gets an empty mailbox."""
    pytester.makeini(STRICT)
    pytester.makepyfile(
        """
        import json, os, urllib.request, uuid
        import pytest

        @pytest.mark.parametrize("turn", [1, 2])
        def test_mail(r7mail_server, turn):
            assert r7mail_server.mailbox.messages(24) == []
            assert r7mail_server.mailbox.deliver(subject="Hello") == 701
            values = json.loads(os.environ["AIRFLOW_CONN_R7MAIL_DEFAULT"])
            assert (values["conn_type"], values["port"]) == ("r7mail", r7mail_server.port)
            state = urllib.request.urlopen(f"{r7mail_server.url}/_emulator/state")
            assert json.load(state)["login"] == values["login"]

        def test_after_it():
            assert "AIRFLOW_CONN_R7MAIL_DEFAULT" not in os.environ
            assert "127.0.0.1" not in os.environ.get("NO_PROXY", "")
        """
    )
    for name in ("AIRFLOW_CONN_R7MAIL_DEFAULT", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    # A proxy that would swallow the call.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    pytester.runpytest_subprocess().assert_outcomes(passed=3)


def test_a_project_without_it_notices_nothing(pytester: pytest.Pytester) -> None:
    """If no test uses the fixture, the plugin imports one small module."""
    pytester.makeini(STRICT)
    pytester.makepyfile(
        """
        import sys

        def test_modules():
            ours = {name for name in sys.modules if name.startswith("airflow")}
            assert ours == {
                "airflow_provider_r7mail",
                "airflow_provider_r7mail.emulator",
                "airflow_provider_r7mail.emulator.pytest_plugin",
            }
            assert not {"starlette", "uvicorn", "jinja2", "nh3"} & set(sys.modules)
        """
    )

    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_missing_extra_is_told(pytester: pytest.Pytester) -> None:
    """Without the extra, the fixture says what to install."""
    pytester.makeini(STRICT)
    pytester.makepyfile(
        """
        import sys

        def test_mail(request, monkeypatch):
            monkeypatch.setitem(sys.modules, "uvicorn", None)
            request.getfixturevalue("r7mail_server")
        """
    )

    done = pytester.runpytest_subprocess()

    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*pip install 'airflow-provider-r7mail[[]emulator[]]'*"])


@pytest.mark.skipif(AIRFLOW_2, reason="the example is for Airflow 3")
def test_the_how_tos_example_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests shown in the how-to run their DAG in Airflow, and pass, as a separate project."""
    project = shutil.copytree(EXAMPLES, tmp_path / "project")
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        monkeypatch.delenv(name)  # our own tests' settings
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]

    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
