"""Airflow in a folder of its own, set up before anything imports Airflow."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ |= {
    "AIRFLOW_HOME": tempfile.mkdtemp(prefix="airflow-"),
    # Airflow runs only DAGs whose files are in this folder.
    "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).parent / "dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
}


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Airflow's database, made once."""
    from airflow.utils.db import initdb

    initdb()
