"""The package as a whole: what Airflow is told of it, and who imports whom."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import warnings
from graphlib import TopologicalSorter
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import airflow_provider_r7mail
from airflow_provider_r7mail import get_provider_info
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.compat import AIRFLOW
from airflow_provider_r7mail.hooks import R7MailHook

PACKAGE = Path(airflow_provider_r7mail.__file__).parent
NAME = "airflow_provider_r7mail"
QUESTIONS = PACKAGE / "client" / "check" / "questions"

# The order of the layers, lowest first: a module imports only from the layers below its own.
LAYERS = (
    {"__init__"},
    {"exceptions"},
    {
        "client.fields",
        "client.limit",
        "client.parameters",
        "client.plain_text",
        "client.progress",
        "client.upload",
    },
    {"client.sizes"},
    {"client.dates", "client.tls", "client.proxies"},
    {"client.sweep"},
    {"client.seek"},
    {"client.traits", "client.models"},
    {"client.answers"},
    {"client.calls"},
    {"client.statuses"},
    {
        "client.http",
        "client.cookies",
        "client.download",
        "client.transport",
        "client.threaded",
        "client.frames",
        "client.account",
    },
    {"client.tokens"},
    {"client.session"},
    {"client.steps"},
    {"client", "client.asking", "client.disk", "client.page_size"},
    {"client.samples"},
    {"client.bounds", "client.labels"},
    {"client.calibration"},
    {"client.spans", "client.compose", "client.disk_errors"},
    {"client.attaching"},
    {"client.folder_reading"},
    {"client.counting", "client.reader"},
    {"client.window_reader"},
    {"client.marker"},
    {"client.finding"},
    {"client.search"},
    {"client.sending", "client.acting", "client.forwarding"},
    {"client.check.report", "client.check.evidence", "client.check.trial"},
    {"client.check.inquiry"},
    {"client.check.hosts"},
    {"client.check.question"},
    {f"client.check.questions.{path.stem}" for path in QUESTIONS.glob("[a-z]*.py")},
    {"client.check.questions"},
    {"client.check.survey"},
    {"client.check"},
    {
        "lake",
        "lake.schema",
        "lake.arrays",
        "lake.items",
        "lake.location",
        "lake.owners",
        "lake.records",
        "lake.s3",
        "lake.threads",
    },
    {
        "lake.storage",
        "lake.filenames",
        "lake.arrow_reader",
        "lake.columns",
        "lake.derived",
        "lake.parsing",
    },
    {"lake.decode"},
    {"lake.layout", "lake.locks", "lake.staging", "lake.privacy"},
    {"lake.reading"},
    {"lake.manifest", "lake.parquet", "lake.attachments", "lake.catalog", "lake.commits"},
    {"lake.compacted"},
    {"lake.inventory"},
    {"lake.rewriting", "lake.neighbours"},
    {"lake.dayfiles", "lake.job", "lake.orphans"},
    {"lake.iceberg", "lake.upkeep"},
    {"lake.writer", "lake.splitting"},
    {"lake.copying", "lake.intake", "lake.publication"},
    {"lake.window"},
    {"lake.recheck", "lake.ledger", "lake.compaction", "lake.bounds"},
    {"lake.iceberg_folder"},
    {"lake.audit"},
    {"lake.repair"},
    {"compat"},
    {"assets"},
    {"connection", "connection_form", "failures", "tries", "lineage", "links", "template_files"},
    {"files", "filters", "refreshing"},
    {"hooks", "positions"},
    {"lakes"},
    {"watching", "maintenance"},
    {"triggers"},
    {"operators", "transfers", "sensors", "notifications", "emailer"},
    {"cli.console"},
    {"cli.server", "cli.iceberg", "cli.paths"},
    {"cli.check", "cli.demo", "cli.emulator", "cli.extract"},
    {"cli.calendar"},
    {"cli.audit", "cli.compact"},
    {"cli.commands"},
    {"cli"},
)
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
ROOMS = ("client", "lake", "cli", "emulator")
HEAVY = {"pandas", "pyarrow", "pyiceberg", "aiohttp", "openlineage"}


def name_of(path: Path) -> str:
    """A module's dotted name within the package; a room's door has the room's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def modules() -> list[Path]:
    """The package's own modules, without the emulator's."""
    return sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) != "emulator")


def room_of(path: Path) -> str:
    """The room of a module, empty for Airflow's words at the door."""
    first = path.relative_to(PACKAGE).parts[0]
    return first if first in ROOMS else ""


def facing_airflow() -> list[Path]:
    """The modules at the door, but those that every room may import."""
    return [path for path in modules() if not room_of(path) and path.stem not in EVERYBODYS]


EVERYBODYS = {"__init__", "exceptions"}


def imports(path: Path, *, at_import_only: bool = False) -> set[str]:
    """The modules that a file imports, except for types only."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def own(names: set[str]) -> set[str]:
    """Which of our modules are among them."""
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == NAME and len(parts) > 1:
            if parts[1] == "emulator":
                found.add("emulator")
            elif ".".join(parts[1:]) in RANK:
                found.add(".".join(parts[1:]))
    # `from ...client.http import x` names the room besides the module.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    """A module imports only from the layers below it, and no room behind the door knows Airflow."""
    module = name_of(path)
    names = imports(path)
    assert module in RANK, f"{module} has no place in the layers"

    used = own(names)
    if room_of(path) == "cli":
        used.discard("emulator")
    assert "emulator" not in used
    assert {name for name in used if RANK[name] >= RANK[module]} == set()
    libraries = {name.split(".")[0] for name in names}
    if room_of(path) in {"client", "lake"} or path.stem in EVERYBODYS:
        assert "airflow" not in libraries
    if room_of(path) == "lake":
        assert "httpx" not in libraries
    if room_of(path) == "client":
        assert not any(name.split(".")[0] in {"lake", "cli"} for name in used)


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "emulator").rglob("*.py")), ids=lambda path: path.stem
)
def test_the_emulator_stands_alone(path: Path) -> None:
    """The emulator shares no code with the client, so that they cannot share a mistake."""
    assert own(imports(path)) <= {"emulator"}
    assert not any(name.split(".")[0] == "airflow" for name in imports(path))


def test_the_emulator_without_its_extra() -> None:
    """Without the extra `emulator`, each module imports, or names the command that installs it."""
    code = f"""
import importlib, pkgutil, sys
import {NAME}.emulator as emulator

sys.modules.update(dict.fromkeys(["fpdf", "jinja2", "nh3", "openpyxl", "starlette", "uvicorn"]))
for module in pkgutil.iter_modules(emulator.__path__, emulator.__name__ + "."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error)
try:
    emulator.Mailbox.office()
except ModuleNotFoundError as error:
    print("office", error)
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert said.keys() >= {f"{NAME}.emulator.page", f"{NAME}.emulator.server", "office"}
    command = "pip install 'airflow-provider-r7mail[emulator]'"
    assert {name for name, error in said.items() if command not in error} == set()


def test_the_emulators_imports_have_no_circle() -> None:
    """No module of the emulator imports one that imports it, even for types or in a function."""
    room = f"{NAME}.emulator"
    files = {f"{room}.{path.stem}": path for path in (PACKAGE / "emulator").glob("*.py")}
    files[room] = files.pop(f"{room}.__init__")
    needs = {
        module: {
            # `from ...emulator import shapes` names a module, `import Mailbox` the room.
            full if (full := f"{node.module}.{alias.name}") in files else str(node.module)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        & files.keys()
        for module, path in files.items()
    }
    assert needs[f"{room}.mailbox"] >= {f"{room}.store", f"{room}.office"}

    TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", facing_airflow(), ids=name_of)
def test_nothing_heavy_is_imported_at_once(path: Path) -> None:
    """Airflow parses DAG files all the time: heavy libraries are imported where they are used."""
    names = {name.split(".")[0] for name in imports(path, at_import_only=True)}
    assert names & HEAVY == set()


@pytest.mark.slow
def test_importing_is_light() -> None:
    """Importing what a DAG file imports brings neither pandas nor pyarrow nor aiohttp."""
    facing = [name_of(path) for path in facing_airflow()]
    code = "import sys; before = set(sys.modules)\n"
    code += "".join(f"import {NAME}.{module}\n" for module in facing)
    code += f"print(sorted({HEAVY | {'numpy'}!r} & (set(sys.modules) - before)))"

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_package_itself_imports_nothing() -> None:
    """Airflow reads the provider's info in every process: this costs no import."""
    assert imports(PACKAGE / "__init__.py") <= {"__future__", "__future__.annotations"}


@pytest.mark.parametrize("name", ["provider_info.schema.json", "provider.yaml.schema.json"])
def test_provider_info_is_valid(name: str) -> None:
    """The provider's info passes Airflow's schemas: an error in it would break all providers."""
    schema = json.loads(files("airflow").joinpath(name).read_text(encoding="utf-8"))
    info = get_provider_info()
    if name == "provider.yaml.schema.json":
        if "email-backends" not in schema["properties"]:
            pytest.skip("that of Airflow before 3.3.2 has no email backends")
        # What only releases of Airflow's own providers have.
        info |= {"state": "ready", "lifecycle": "production", "source-date-epoch": 0}

    jsonschema.validate(json.loads(json.dumps(info)), schema)


def test_provider_info_names_what_exists() -> None:
    """Every module, class and version that the info names is there."""
    info = get_provider_info()
    assert info["package-name"] == "airflow-provider-r7mail"
    assert info["versions"] == [airflow_provider_r7mail.__version__]
    kinds = ("hooks", "operators", "sensors", "triggers")
    named = [module for kind in kinds for module in info[kind][0]["python-modules"]]
    named.append(info["transfers"][0]["python-module"])

    assert [module for module in named if importlib.util.find_spec(module) is None] == []
    [connection] = info["connection-types"]
    assert connection["hook-class-name"] == f"{R7MailHook.__module__}.{R7MailHook.__name__}"
    assert connection["connection-type"] == R7MailHook.conn_type
    assert connection["hook-name"] == R7MailHook.hook_name


def test_airflow_finds_the_provider() -> None:
    """Airflow finds the provider by its entry point, and its hook by the connection type."""
    from airflow.providers_manager import ProvidersManager  # noqa: PLC0415 - slow

    [entry] = [
        entry
        for entry in entry_points(group="apache_airflow_provider")
        if entry.value.startswith(NAME)
    ]
    assert entry.load()() == get_provider_info()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other providers' hooks warn, and the form's web app
        manager = ProvidersManager()  # type: ignore[no-untyped-call]
        hook = manager.hooks["r7mail"]
    assert "airflow-provider-r7mail" in manager.providers
    assert hook is not None
    assert hook.hook_name == "R7-Office Mail"


FIELDS: dict[str, Any] = get_provider_info()["connection-types"][0]["conn-fields"]


def test_the_form_has_every_field() -> None:
    """The connection's form has each field that the hook reads, explained, with its default."""
    defaults = {
        name: FIELDS[name]["schema"]["default"]
        for name in ("timeout", "max_concurrency", "max_retries")
    }

    assert set(FIELDS) == {
        "verify",
        "cert",
        "proxy",
        "timeout",
        "max_concurrency",
        "max_retries",
        "folders",
        "web_url",
        "disk_url",
        "disk_folder",
        "privacy_secret",
    }
    for field in FIELDS.values():
        assert field["label"]
        assert field["description"]
        assert "null" in field["schema"]["type"], "a field without null is a required one"
    config = ClientConfig(url="u", login="l", password="p")
    assert defaults == {name: getattr(config, name) for name in defaults}


def test_the_forms_secrets_are_masked() -> None:
    """Airflow masks, by its name, every field that is or may hold a secret."""
    from airflow_provider_r7mail.compat import redact  # noqa: PLC0415

    if AIRFLOW == (3, 0) or version("apache-airflow") == "2.11.0":
        pytest.skip("this version knows no `proxy` among the names of secrets")
    shown = redact(dict.fromkeys(FIELDS, "a-value"))
    assert isinstance(shown, dict)
    masked = {name for name, value in shown.items() if value == "***"}
    hidden = {name for name, field in FIELDS.items() if field["schema"].get("format") == "password"}
    assert masked == hidden == {"proxy", "privacy_secret"}


def test_labels_for_airflow_2() -> None:
    """Airflow before 3.2 gets the same labels from the hook."""
    behaviour = R7MailHook.get_ui_field_behaviour()

    assert set(behaviour) == {"hidden_fields", "relabeling", "placeholders"}
    assert behaviour["relabeling"] == {"host": "Host or URL"}
