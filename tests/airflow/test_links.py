"""The link from a task to its folder in the web client."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.models.serialized_dag import SerializedDagModel
from airflow.providers_manager import ProvidersManager

from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.links import R7MailFolderLink
from tests.conftest import AIRFLOW_2, CONNECTION

PAGE = "https://mail.example.org/mail/#folder={folder}"
DAG = """
    from airflow.sdk import DAG
    from airflow_provider_r7mail.operators import (
        R7MailDeleteOperator,
        R7MailForwardOperator,
        R7MailMarkImportantOperator,
        R7MailMarkReadOperator,
        R7MailMoveOperator,
    )
    from airflow_provider_r7mail.transfers import (
        R7MailAttachmentsToObjectStorageOperator,
        R7MailToParquetOperator,
    )

    with DAG("folder_link") as dag:
        some = dict(folder="inbox", message_ids=[{number}])
        last = R7MailToParquetOperator(
            task_id="extract", folder=24, output_path="{root}", start="2025-06-01", end="2025-06-02"
        )
        for made in (
            R7MailAttachmentsToObjectStorageOperator(
                task_id="files", attachments_path="{root}", **some
            ),
            R7MailForwardOperator(task_id="forward", to="a@x.ru", **some),
            R7MailMarkReadOperator(task_id="read", **some),
            R7MailMarkImportantOperator(task_id="important", **some),
            R7MailMoveOperator(task_id="move", to_folder=15, **some),
            R7MailDeleteOperator(task_id="delete", folder=15, message_ids=[{number}]),
            R7MailMarkReadOperator(task_id="fails", folder=24, message_ids=[{number}]),
        ):
            last >> made
            last = made
"""


def shown_links(result: Any) -> dict[str, str]:
    """The links of all tasks, as Airflow's web server finds them, from its database."""
    instances = result._run.get_task_instances()
    if AIRFLOW_2:  # its dag.test() leaves no DAG in the database
        dag = next(module.dag for name, module in sys.modules.items() if name.startswith("dag_"))
    else:
        dag = SerializedDagModel.get_dag(instances[0].dag_id)
    assert dag is not None
    return {
        instance.task_id: dag.get_task(instance.task_id).get_extra_links(
            instance, R7MailFolderLink.name
        )
        or ""
        for instance in instances
    }


@pytest.fixture
def links(
    server: Emulator,
    run_dag: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str | None], dict[str, str]]:
    """Run all operators, and return the links that the web server then shows."""

    def run(web_url: str | None) -> dict[str, str]:
        extra = {"folders": {"inbox": 24}, "web_url": web_url, "max_retries": 0}
        monkeypatch.setenv(CONNECTION, server.connection(**extra))
        number = server.mailbox.deliver()
        result = run_dag(DAG.replace("{root}", str(tmp_path)).replace("{number}", str(number)))
        # The web server has neither the connection nor a way to the mail server.
        monkeypatch.delenv(CONNECTION)
        server.requests.clear()
        shown = shown_links(result)
        assert server.requests == []
        return shown

    return run


def test_the_folders_page(links: Callable[[str | None], dict[str, str]]) -> None:
    """Each task that works on a folder links to its page, even if the task failed."""
    page = "https://mail.example.org/mail/#folder="

    assert links(PAGE) == {
        "extract": f"{page}24",
        "files": f"{page}24",
        "forward": f"{page}24",
        "read": f"{page}24",
        "important": f"{page}24",
        "move": f"{page}24",
        "delete": f"{page}15",
        "fails": f"{page}24",
    }


def test_no_page(
    links: Callable[[str | None], dict[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    """Without web_url in the connection there is no link, and no error in Airflow's log either."""
    assert set(links(None).values()) == {""}

    assert "XCom not found" not in "".join(capfd.readouterr())


def test_airflow_knows_the_link() -> None:
    """The link's class is in the provider info; otherwise Airflow 2 wouldn't show the link."""
    manager = ProvidersManager()  # type: ignore[no-untyped-call]
    name = f"{R7MailFolderLink.__module__}.{R7MailFolderLink.__name__}"

    assert name in manager.extra_links_class_names
