"""Processes as users start them, forked from one that has imported everything already."""

from __future__ import annotations

import os
import runpy
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lake.support import CHILDREN


def run(*words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `r7mail` without a terminal; what it said, and its exit code."""
    return _wait_for(_command, (words,), {"COLUMNS": "80", **(env or {})})


def run_file(path: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a file of Python; what it said, and its exit code."""
    return _wait_for(runpy.run_path, (str(path), None, "__main__"), env)


def _wait_for(
    target: Callable[..., Any], args: Sequence[Any], env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(os.devnull), Path(folder, "stdout"), Path(folder, "stderr")]
        child = CHILDREN.Process(target=_begin, args=(target, args, streams, {**os.environ, **env}))
        child.start()
        child.join(200)
        child.kill()
        child.join()
        assert child.exitcode is not None
        said = [path.read_text() for path in streams[1:]]
        return subprocess.CompletedProcess(args, child.exitcode, *said)


def _begin(
    target: Callable[..., Any], args: Sequence[Any], streams: Sequence[Path], env: dict[str, str]
) -> None:
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    target(*args)


def _command(words: Sequence[str]) -> None:
    from airflow_provider_r7mail.cli import app  # noqa: PLC0415 - reads the environment

    app(words, prog_name="r7mail")
