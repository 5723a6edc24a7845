"""The package as a whole: what Airflow is told of it, and who imports whom."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import warnings
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import airflow_provider_r7mail
from airflow_provider_r7mail import get_provider_info
from airflow_provider_r7mail.client import ClientConfig
from airflow_provider_r7mail.compat import AIRFLOW
from airflow_provider_r7mail.hooks import R7MailHook

PACKAGE = Path(airflow_provider_r7mail.__file__).parent
NAME = "airflow_provider_r7mail"

# The order of design: a module imports what is left of it, or above.
LAYERS = (
    {"__init__"},
    {"exceptions"},
    {"models", "plain_text"},
    {"api"},
    {"transport"},
    {"client", "storage", "console"},
    {"extract"},
    {"tables"},
    {"attachments", "evidence", "iceberg", "privacy"},
    {"pipeline", "sending", "check"},
    {"compat"},
    {"assets"},
    {"lineage", "links"},
    {"hooks"},
    {"triggers"},
    {"operators", "transfers", "sensors", "notifications", "emailer"},
    {"demo"},
    {"cli"},
)
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
FACING_AIRFLOW = {
    "compat",
    "assets",
    "lineage",
    "links",
    "hooks",
    "operators",
    "transfers",
    "sensors",
    "triggers",
    "notifications",
    "emailer",
}
HEAVY = {"pandas", "pyarrow", "pyiceberg", "aiohttp", "openlineage"}


def modules() -> list[Path]:
    """The package's own modules, without the emulator's."""
    return sorted(PACKAGE.glob("*.py"))


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
    ours = (name.split(".") for name in names if name.startswith(f"{NAME}."))
    return {parts[1] for parts in ours if parts[1] in RANK or parts[1] == "emulator"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_imports_go_one_way(path: Path) -> None:
    """A module imports only what is below it, and the wire modules know nothing of Airflow."""
    module = path.stem
    names = imports(path)
    assert module in RANK, f"{module} has no place in the layers"

    used = own(names)
    if module in {"cli", "demo"}:
        used.discard("emulator")
    assert "emulator" not in used
    assert {name for name in used if RANK[name] >= RANK[module]} == set()
    if module not in FACING_AIRFLOW | {"cli"}:
        assert {name for name in names if name.split(".")[0] == "airflow"} == set()


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "emulator").rglob("*.py")), ids=lambda path: path.stem
)
def test_the_emulator_stands_alone(path: Path) -> None:
    """The stand-in shares no code with the client, so that they cannot share a mistake."""
    assert own(imports(path)) <= {"emulator"}
    assert not any(name.split(".")[0] == "airflow" for name in imports(path))


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if path.stem in FACING_AIRFLOW],
    ids=lambda path: path.stem,
)
def test_nothing_heavy_is_imported_at_once(path: Path) -> None:
    """Airflow parses DAG files all the time: heavy libraries are imported where they are used."""
    names = {name.split(".")[0] for name in imports(path, at_import_only=True)}
    assert names & HEAVY == set()


def test_importing_is_light() -> None:
    """Importing what a DAG file imports brings neither pandas nor pyarrow nor aiohttp."""
    facing = [path.stem for path in modules() if path.stem in FACING_AIRFLOW]
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
        if AIRFLOW < (3, 2):
            pytest.skip("that of Airflow before 3.2 has no connection fields")
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
