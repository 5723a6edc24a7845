"""Set up Airflow in a temporary folder, before anything imports it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ |= {
    "AIRFLOW_HOME": tempfile.mkdtemp(prefix="airflow-"),
    # Airflow only runs DAGs from files in this folder.
    "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).parent / "dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
}


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Create Airflow's database once."""
    from airflow.utils.db import initdb

    initdb()
