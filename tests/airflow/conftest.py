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

from airflow_provider_r7mail.compat import redact
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
def run_example(airflow_database: None) -> Iterator[Runner]:
    """Run a file of `dags/` in Airflow for a logical date, with attributes of sensors changed."""
    folder = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
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
            return Run(dag.test(logical_date=at, run_conf=conf))

    yield run
    for copy in copies:
        copy.unlink(missing_ok=True)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the DAGs write to; their history starts before the tests' mail."""
    monkeypatch.setenv("R7MAIL_START", "2025-01-01")
    monkeypatch.setenv("AIRFLOW_VAR_R7MAIL_LAKE", tmp_path.as_uri())
    return tmp_path
