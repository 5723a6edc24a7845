"""`make wheelhouse`: wheels that install without a network, with hashes and licences."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheelhouse() -> Any:
    """The script."""
    path = ROOT / ".ci" / "wheelhouse.py"
    spec = importlib.util.spec_from_file_location("wheelhouse", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_wheel(folder: Path, name: str, metadata: str) -> Path:
    """Make a wheel with one module that does nothing, and a package within, as setuptools has."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "",
        f"{name}_vendor/other-2.0.dist-info/METADATA": "Name: other",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{each},,\n" for each in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in files.items():
            archive.writestr(each, text)
    return path


@pytest.mark.slow
def test_it_installs_without_an_index(wheelhouse: Any, tmp_path: Path) -> None:
    """The wheels install from their folder alone; one that was changed since is refused."""
    house = tmp_path / "house"
    house.mkdir()
    needed = make_wheel(house, "needed", "")
    wheels = [make_wheel(house, "needing", "Requires-Dist: needed"), needed]
    (house / "requirements.txt").write_text(wheelhouse.requirements(wheels))
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")

    def pip(arguments: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "pip", *arguments.split()]
        return subprocess.run(command, cwd=house, capture_output=True, text=True, check=False)

    install = "install --no-index --find-links . --require-hashes -r requirements.txt"
    done = pip(install)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([python, "-c", "import needed, needing"], check=False).returncode == 0

    pip("uninstall --yes needed")
    make_wheel(house, "needed", "Summary: changed")
    assert "DO NOT MATCH THE HASHES" in pip(install).stderr


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: MIT\nLicense: see LICENSE", "MIT"),
        ("License: BSD\nClassifier: License :: OSI Approved :: BSD License", "BSD License"),
        ("License: Apache-2.0\nClassifier: License :: OSI Approved", "Apache-2.0"),
        ("License: MIT License\n        \n        Permission is hereby granted", "MIT License"),
        ("", "not stated"),
    ],
)
def test_licences(wheelhouse: Any, tmp_path: Path, metadata: str, licence: str) -> None:
    """The list has each package's licence, wherever its metadata states it, in one line."""
    wheel = make_wheel(tmp_path, "it", metadata)

    assert wheelhouse.licenses([wheel]) == f"it\t1.0\t{licence}\n"


def test_an_unknown_airflow() -> None:
    """If I ask for an Airflow whose constraints aren't there, I am told which ones are."""
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "wheelhouse.py", "1.10.15", "amazon"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "take one of 2.11.0, " in done.stderr
    assert "or save Airflow's own file as tests/constraints/airflow-1.10.15.txt" in done.stderr
