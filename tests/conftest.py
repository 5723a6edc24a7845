"""Airflow in a folder of its own, the emulator on a real socket, DAGs run for real.

What Airflow reads when it is imported is set here, before anything imports it.
"""

from __future__ import annotations

import atexit
import importlib.util
import itertools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import is_hypothesis_test

if TYPE_CHECKING:
    from tests.wire import Certificates

AIRFLOW_2 = version("apache-airflow").startswith("2.")
AIRFLOW_3_0 = version("apache-airflow").startswith("3.0.")
HOME = Path(tempfile.mkdtemp(prefix="r7mail-airflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
DAGS = HOME / "dags"
DAGS.mkdir()
NUMBERS = itertools.count()

for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[name]
os.environ.update(
    {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        # Airflow 2's test mode would take one that SQLite does not allow there.
        **({"AIRFLOW__CORE__EXECUTOR": "SequentialExecutor"} if AIRFLOW_2 else {}),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
        # A proxy of the machine's must not come between the tests and their own server.
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
)

from airflow_provider_r7mail.emulator import Emulator, Mailbox  # noqa: E402

CONNECTION = "AIRFLOW_CONN_R7MAIL_DEFAULT"
# The example DAGs, the README's and those that `r7mail demo` runs are for Airflow 3; assets and
# the notifier are tested in what only that has.
FOR_AIRFLOW_3 = (
    "airflow/test_analytics.py",
    "airflow/test_assets.py",
    "airflow/test_backfill.py",
    "airflow/test_dags.py",
    "airflow/test_notifications.py",
    "airflow/test_warehouses.py",
    "cli/test_cli.py",
    "docs/test_readme.py",
)
SLOW_FIXTURES = {"airflow_database", "browser", "s3_url", "site"}
collect_ignore = list(FOR_AIRFLOW_3) if AIRFLOW_2 else []


def pytest_configure(config: pytest.Config) -> None:
    """Bear what older Airflows do to their own objects."""
    # ObjectStoragePath up to 3.1, at every `/`
    config.addinivalue_line(
        "filterwarnings", "ignore:in a future version of UPath:PendingDeprecationWarning"
    )
    # 3.0 and 3.1 with a newer common-compat
    config.addinivalue_line(
        "filterwarnings", "ignore:The `airflow.operators.branch.BaseBranchOperator`"
    )
    # 3.3 with an older provider of Amazon
    config.addinivalue_line("filterwarnings", r"ignore:::airflow\.providers\.amazon\.")
    if AIRFLOW_2:
        # its Connection, for an Extra that the tests want to be wrong
        config.addinivalue_line("filterwarnings", "ignore:Encountered (non-JSON|JSON value)")
        # As its own processes do: models are of no use before those that they refer to.
        importlib.import_module("airflow.models").import_all_models()
        with warnings.catch_warnings():
            # Once in a process, it imports its own hooks, whose libraries warn of each other.
            warnings.simplefilter("ignore")
            importlib.import_module("airflow.providers_manager").ProvidersManager()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what starts a database, a browser or S3, and what tries hundreds of examples."""
    for item in items:
        assert isinstance(item, pytest.Function)
        if not SLOW_FIXTURES.isdisjoint(item.fixturenames) or is_hypothesis_test(item.obj):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what is known of accounts: tests share ports and passwords, but no refusals."""
    # Not pytest's, which looks through all earlier ones for its number.
    folder = Path(tempfile.mkdtemp(prefix="state-", dir=HOME))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An empty mailbox on a mail server, which the connection `r7mail_default` leads to."""
    with Emulator(Mailbox()) as emulator:
        # One repetition: tests of failures need not wait long.
        monkeypatch.setenv(CONNECTION, emulator.connection(max_retries=1))
        yield emulator


@pytest.fixture
def logged(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Callable[[], str]:
    """Everything logged so far, by Python's logging and by Airflow's own, which prints."""
    caplog.set_level(logging.DEBUG)

    def read() -> str:
        out, err = capfd.readouterr()
        text = "\n".join([caplog.text, out, err])
        if AIRFLOW_3_0:
            # Its DEBUG log has each secret in clear when it is told to mask it.
            text = re.sub(r"MaskSecret\(value=.*", "", text)
        return text

    return read


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Airflow's metadata database, made when the first test needs it."""
    from airflow.utils.db import initdb  # noqa: PLC0415 - reads the configuration above

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow's own migrations warn
        initdb()


class DagResult:
    """What a DAG run did."""

    def __init__(self, run: Any, dag: Any) -> None:
        self._run = run
        self._dag = dag
        self.state = str(run.state)
        self.states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}

    def xcom(self, task_id: str) -> Any:
        """What a task returned."""
        instances = {ti.task_id: ti for ti in self._run.get_task_instances()}
        return instances[task_id].xcom_pull(task_ids=task_id)

    def set_state(self, task_id: str, key: str, value: Any) -> None:
        """Change what a task keeps in Airflow's state store, as a person does. Airflow 3 only."""
        from airflow._shared.state import TaskScope  # noqa: PLC0415
        from airflow.state import get_state_backend  # noqa: PLC0415

        scope = TaskScope(dag_id=self._run.dag_id, run_id=self._run.run_id, task_id=task_id)
        get_state_backend().set(scope, key, json.dumps(value))

    def clear(self, task_id: str, map_index: int = -1) -> DagResult:
        """Clear a task, as a person does, and run it again in the same run. Airflow 3 only."""
        from airflow.models.dagrun import DagRun  # noqa: PLC0415
        from airflow.models.taskinstance import clear_task_instances  # noqa: PLC0415
        from airflow.sdk.definitions.dag import _run_task  # noqa: PLC0415
        from airflow.serialization.serialized_objects import DagSerialization  # noqa: PLC0415
        from airflow.utils.session import create_session  # noqa: PLC0415

        def wanted(ti: Any) -> bool:
            return (ti.task_id, ti.map_index) == (task_id, map_index)

        with warnings.catch_warnings(), create_session() as session:
            warnings.simplefilter("ignore")  # as for dag.test()
            run = session.get(DagRun, self._run.id)
            assert run is not None
            run.dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(self._dag))
            instances = run.get_task_instances(session=session)
            clear_task_instances([ti for ti in instances if wanted(ti)], session)
            run.state = "running"
            session.commit()
            while run.state == "running":
                session.expire_all()
                ready = run.update_state(session=session)[0]
                assert ready or run.state != "running"
                for ti in ready:
                    ti.try_number += 1
                    ti.state = "scheduled"
                    session.commit()
                    _run_task(ti=ti, task=self._dag.task_dict[ti.task_id])
            return DagResult(run, self._dag)


@pytest.fixture
def run_dag(
    airflow_database: None, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], DagResult]]:
    """Run DAG code in Airflow; the code must make a `dag`."""
    written: list[Path] = []

    def run(code: str) -> DagResult:
        # Airflow runs only what is in a file of its DAG folder, and knows it by its dag_id.
        # Never the same name twice: Python would take one file's bytecode for another's of the same
        # size and second.
        name = f"dag_{next(NUMBERS)}_{request.node.name.split('[')[0]}"
        path = DAGS / f"{name}.py"
        if AIRFLOW_2:
            code = code.replace("airflow.sdk", "tests.airflow_2")
        path.write_text(textwrap.dedent(code))
        written.append(path)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dag.test() and the API server it starts warn
            spec.loader.exec_module(module)
            return DagResult(module.dag.test(), module.dag)

    yield run
    for path in written:
        sys.modules.pop(path.stem, None)
        path.unlink()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of an authority that no system knows."""
    from tests.wire import Certificates  # noqa: PLC0415 - few tests speak TLS

    made = Certificates(tmp_path_factory.mktemp("tls"))
    for name in ("ca", "server", "client"):
        made.make(name)
    made.make("locked", password=b"sesame")
    return made
