"""Collect the wheels that a machine without a network needs: `make wheelhouse`.

wheelhouse.py <Airflow's version> <extras> writes them, for the Python that runs this, into
`dist/wheelhouse-<Airflow>-py<Python>/`, with each one's hash in `requirements.txt` and its licence
in `licenses.txt`. pip does the work: it reads `pip.conf`, and builds what there is no wheel of.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(airflow: str, extras: str) -> None:
    """Collect the wheels of this package and of an Airflow, within Airflow's constraints."""
    constraints = ROOT / "tests" / "constraints" / f"airflow-{airflow}.txt"
    if not constraints.exists():
        known = sorted(path.stem.removeprefix("airflow-") for path in constraints.parent.iterdir())
        sys.exit(
            f"No constraints of Airflow {airflow}: take one of {', '.join(known)}, or save "
            f"Airflow's own file as {constraints.relative_to(ROOT)}."
        )
    folder = ROOT / "dist" / f"wheelhouse-{airflow}-py{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"Collecting wheels into {folder.relative_to(ROOT)} (some minutes) ...", flush=True)
    with tempfile.TemporaryDirectory() as tools:
        venv.create(tools, with_pip=True)
        pip = [f"{tools}/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        options = ["--wheel-dir", str(folder), "--constraint", str(constraints)]
        wanted = [f"apache-airflow=={airflow}", f"{ROOT}[{extras}]"]
        subprocess.run([*pip, "wheel", *options, *wanted], check=True)
    wheels = sorted(folder.glob("*.whl"))
    (folder / "requirements.txt").write_text(requirements(wheels), encoding="utf-8")
    (folder / "licenses.txt").write_text(licenses(wheels), encoding="utf-8")
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(f"{len(wheels)} wheels, {size:.0f} MB. To install them, run in that folder:")
    print("pip install --no-index --find-links . --require-hashes -r requirements.txt")


def requirements(wheels: Iterable[Path]) -> str:
    """Return what `pip install --require-hashes` reads: each wheel's version and hash."""
    lines = []
    for wheel in wheels:
        about = metadata(wheel)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{about['Name']}=={about['Version']} --hash=sha256:{digest}\n")
    return "".join(lines)


def licenses(wheels: Iterable[Path]) -> str:
    """Return each wheel's name, version and licence, separated by tabs."""
    about = map(metadata, wheels)
    return "".join(f"{each['Name']}\t{each['Version']}\t{licence(each)}\n" for each in about)


def licence(about: Message) -> str:
    """Return a package's licence, from the most exact of the fields that have it."""
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier", [])
        if line.startswith("License :: ") and line != "License :: OSI Approved"
    ]
    # Some give the whole text as `License`: its first line is the name.
    named = about.get("License", "").strip().partition("\n")[0]
    return about.get("License-Expression") or ", ".join(classifiers) or named or "not stated"


def metadata(wheel: Path) -> Message:
    """Return what a wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        # In other folders is that of packages that a wheel contains.
        own = re.compile(r"[^/]+\.dist-info/METADATA")
        [name] = filter(own.fullmatch, archive.namelist())
        return HeaderParser().parsestr(archive.read(name).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
