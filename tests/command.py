"""The command `r7mail`, each time in a process of its own that need not import everything anew."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lake.support import CHILDREN


def run(*words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command without a terminal; what it said, and its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(os.devnull), Path(folder, "stdout"), Path(folder, "stderr")]
        child = CHILDREN.Process(
            target=_run, args=(words, streams, {**os.environ, "COLUMNS": "80", **(env or {})})
        )
        child.start()
        child.join(200)
        child.kill()
        child.join()
        assert child.exitcode is not None
        return subprocess.CompletedProcess(
            ["r7mail", *words], child.exitcode, *(path.read_text() for path in streams[1:])
        )


def _run(words: Sequence[str], streams: Sequence[Path], env: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    from airflow_provider_r7mail.cli import app  # noqa: PLC0415 - reads the environment

    app(words, prog_name="r7mail")
