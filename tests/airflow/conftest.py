"""Fixtures for tests that involve Airflow."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_r7mail.compat import AIRFLOW, redact
from tests.airflow.support import SOURCE, Run, Runner, load


@pytest.fixture(autouse=True)
def _own_secrets() -> Iterator[None]:
    """Secrets that a test masks are masked in that test only.

    Airflow compiles all of them into one pattern at each new one: in the end, that takes longer
    than the test.
    """
    masker = importlib.import_module(redact.__module__)._secrets_masker()
    patterns, replacer = set(masker.patterns), masker.replacer
    yield
    masker.patterns, masker.replacer = patterns, replacer


@pytest.fixture
def run_example(airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """Run a file of `dags/` in Airflow for a logical date, with attributes of sensors changed."""
    folder = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    # As in Airflow's processes; `dag.test()` of 3.0 leaves it out.
    monkeypatch.syspath_prepend(str(folder))
    copies: list[Path] = []

    def run(name: str, at: datetime, conf: Any = None, **of_sensors: float) -> Run:
        copy = folder / f"{name}.py"
        for source in SOURCE.glob(f"{name}*.*"):  # with its templates
            copies.append(folder / source.name)
            shutil.copy(source, copies[-1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dag.test() and the API server it starts warn
            dag = load(name, copy).dag
            for task in dag.tasks:
                task.retry_delay = timedelta(0)  # failures need not be slow
                for attribute in of_sensors.keys() & vars(task).keys():
                    setattr(task, attribute, of_sensors[attribute])
            if AIRFLOW == (3, 0):
                _activate_assets(dag)
            return Run(dag.test(logical_date=at, run_conf=conf))

    yield run
    for copy in copies:
        copy.unlink(missing_ok=True)


def _activate_assets(dag: Any) -> None:
    """Do what Airflow 3.0's scheduler does before a run, and its `dag.test()` leaves out."""
    from airflow.models.asset import AssetActive, AssetModel  # noqa: PLC0415 - as the database
    from airflow.utils.session import create_session  # noqa: PLC0415

    with create_session() as session:
        for asset in [asset for task in dag.tasks for asset in (*task.inlets, *task.outlets)]:
            names = {"name": asset.name, "uri": asset.uri}
            for model in (AssetModel, AssetActive):
                if session.query(model).filter_by(**names).first() is None:
                    session.add(model(**names))
                    session.flush()


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the DAGs write to; their history starts before the tests' mail."""
    monkeypatch.setenv("R7MAIL_START", "2025-01-01")
    monkeypatch.setenv("AIRFLOW_VAR_R7MAIL_LAKE", tmp_path.as_uri())
    return tmp_path
