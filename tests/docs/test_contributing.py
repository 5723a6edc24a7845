"""The page for who carries on is true: what it names is there, and its commands do what it says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "airflow_provider_r7mail"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([\w-]+):.*##", MAKEFILE, re.MULTILINE))
FENCED = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# What the package writes, what is installed, and what git doesn't have.
ELSEWHERE = ("_manifest.json", ".venv", "dist/")


def page(language: str) -> str:
    """The page in a language."""
    return (ROOT / "docs" / language / "contributing.md").read_text(encoding="utf-8")


def spans(language: str) -> list[str]:
    """What the page's text has as code."""
    return re.findall(r"`([^`]+)`", FENCED.sub("", page(language)))


def commands() -> list[str]:
    """The commands that the page gives, in the text and in blocks."""
    blocks = "\n".join(body for _, _, body in FENCED.findall(page("en")))
    return [*spans("en"), *re.findall(r"^ *\$ (.*)$", blocks, re.MULTILINE)]


def test_both_languages_name_the_same() -> None:
    """A file, class or command that the English page names is in the Russian one as well."""
    assert sorted(spans("ru")) == sorted(spans("en"))


def test_every_path_exists() -> None:
    """Each file and folder that the page names is there, so that I find what it's about."""
    words = {word for text in commands() for word in text.split()}
    paths = {word for word in words if re.search(r"/|\.(py|md|json)$", word)}
    places = (ROOT, PACKAGE, ROOT / "docs" / "en")

    assert len(paths) > 50
    assert [
        path
        for path in sorted(paths)
        if not path.startswith(ELSEWHERE) and not any((place / path).exists() for place in places)
    ] == []


def test_every_make_target_exists() -> None:
    """Each `make` command of the page is one of `make help`, or tests within constraints."""
    files = (ROOT / "tests" / "constraints").glob("airflow-*.txt")
    within = {path.stem.replace("airflow-", "test-") for path in files}
    named = {text.removeprefix("make ") for text in commands() if text.startswith("make ")}

    assert {"install", "test-quick", "test", "docs"} <= named
    assert named - TARGETS - within == set()


def test_every_name_exists() -> None:
    """Each class, function, parameter and fixture that the page names is in the code."""
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "pyproject.toml"]
    code = {
        word
        for path in sources
        if path != Path(__file__)
        for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))
    }
    named = {name for name in spans("en") if re.fullmatch(r"[A-Za-z_]\w+(=\w*)?", name)}

    assert {"Call", "Seek", "LAYERS", "run_dag"} <= named
    assert {name.partition("=")[0] for name in named} - TARGETS - code - {"make"} == set()


def test_the_quick_tests_need_nothing_installed() -> None:
    """`make test-quick` leaves slow tests out, and installs no browser or database for them."""
    made = subprocess.run(
        ["make", "--dry-run", "--always-make", "test-quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert '-m "not slow"' in made
    assert re.findall("apt-get|chromium|postgres|clickhouse", made) == []


def test_pre_commit_runs_the_linters() -> None:
    """The hooks run what `make lint` runs, from .venv, so that they work in a closed network."""
    config = read_yaml(".pre-commit-config.yaml")
    [lint] = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]

    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    linters = lint.replace("\t", "").replace("$(BIN)", ".venv/bin").splitlines()
    assert [hook["entry"] for hook in hooks] == linters


def test_the_workflow_does_what_ci_does() -> None:
    """The workflow checks out, takes a Python that is tested, and runs `.ci/run`; no more."""
    workflow = read_yaml(".github/workflows/ci.yml")
    [job] = workflow["jobs"].values()
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    [pythons] = [step["with"]["python-version"] for step in job["steps"] if "with" in step]

    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert [name.partition("@")[0] for name in actions] == [
        "actions/checkout",
        "actions/setup-python",
    ]
    assert all(re.fullmatch(r".*@v\d+", name) for name in actions)
    [pairs] = re.findall(r"^NEWEST := (.*)$", MAKEFILE, re.MULTILINE)
    assert {f"3.3-{python}" for python in pythons.split()} <= set(pairs.split())
    [official] = re.findall(r"call NEW_VENV,(3\.\d+)\)\n\t@grep", MAKEFILE)
    assert official in pythons.split()


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML file of the project."""
    found: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return found
