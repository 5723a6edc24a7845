"""What tests of the example DAGs share: loading and running them, and reading what they wrote."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb

from airflow_provider_r7mail.emulator.folders import INBOX
from airflow_provider_r7mail.transfers import R7MailToParquetOperator

SOURCE = Path(__file__).parents[2] / "dags"
JUNE = datetime(2025, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Run:
    """The result of a DAG run."""

    def __init__(self, run: Any) -> None:
        self.state = str(run.state)
        self.instances = run.get_task_instances()
        self.states = {(ti.task_id, ti.map_index): str(ti.state) for ti in self.instances}

    def state_of(self, task_id: str) -> set[str]:
        """Return the states of a task's instances."""
        return {state for (name, _), state in self.states.items() if name == task_id}

    def xcom(self, task_id: str) -> Any:
        """Return what a task returned."""
        [found] = [ti for ti in self.instances if ti.task_id == task_id]
        return found.xcom_pull(task_ids=task_id)


Runner = Callable[..., Run]


def load(name: str, path: Path) -> ModuleType:
    """Import a DAG file as Airflow does."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def query(sql: str) -> list[tuple[Any, ...]]:
    """Query DuckDB."""
    found = duckdb.sql(sql)
    assert found is not None
    return found.fetchall()


def rows_of(lake: Path, table: str, select: str = "SELECT *") -> list[tuple[Any, ...]]:
    """Query a table's files, as a user would."""
    files = f"{lake}/tables/{table}/**/*.parquet"
    return query(f"{select} FROM read_parquet('{files}', hive_partitioning=true)")


def extract(root: Path | str, start: datetime, end: datetime | None = None, **options: Any) -> Any:
    """Extract a day, or another window, as a run with this data interval would."""
    context = {
        "data_interval_start": start,
        "data_interval_end": end or start + DAY,
        **options.pop("context", {}),
    }
    given = {"folder": INBOX, "output_path": str(root), "recheck_hours": 0, **options}
    operator: Any = R7MailToParquetOperator(task_id="extract", **given)
    return operator.execute(context)


# Most look like numbers.
LOGINS = ("007", "7", "1001", "1e5", "ann")


def rename_logins(tables: Path, logins: Sequence[str] = LOGINS) -> list[str]:
    """Give the only mailbox's tables to other logins."""
    for table in tables.iterdir():
        [home] = table.iterdir()
        for login in logins:
            shutil.copytree(home, table / f"mailbox={login}")
        shutil.rmtree(home)
    for path in tables.glob("*/*/*/*/_manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["mailbox"] = path.parts[-4].removeprefix("mailbox=")
        path.write_text(json.dumps(manifest))
    return list(logins)
