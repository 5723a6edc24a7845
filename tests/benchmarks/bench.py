"""Measure this package beside what a user would pick instead: `make bench`.

Each contender runs in a process of its own against the same server process; rounds are
interleaved, medians shown. Writes the tables into docs/performance.md. `make bench ONLY=shapes`
measures only that section.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.benchmarks.windows import BUCKET, make_year

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "performance.md"
PEERS = ("httpx_pandas", "requests_pandas", "http_operator", "dlt_rest_api")
TITLES = {
    "ours": "**this package**",
    "ours_fixed": "**this package**, `page_size` set",
    "many_windows": "**this package**",
    "poll": "**this package**'s sensor in poke mode",
    "poll_anew": "**this package**'s sensor in reschedule mode, which logs in each time",
    "poll_http": "Airflow's HttpSensor, given a token",
    "hour": "**this package**'s operator, first task of a process",
    "hour_http": "Airflow's HttpOperator, given a token, and pandas, first task of a process",
    "hour_command": "**this package**'s `r7mail extract`, from process start to end",
    "send": "**this package**'s hook",
    "send_httpx": "hand-written httpx loop: upload, look up the ids, send",
    "many_windows_pandas": "hand-written httpx loop + pandas",
    "prototype": "prototype: offsets known in advance",
    "httpx_pandas": "hand-written httpx loop + pandas",
    "requests_pandas": "hand-written requests loop + pandas",
    "http_operator": "Airflow HttpOperator, pagination, pandas",
    "dlt_rest_api": "dlt rest_api, tuned",
    "s3fs_async": "s3fs's own async calls, unverified, not hashed",
    "s3fs_hashed": "s3fs's own async calls, unverified, hashed",
    "s3fs_parts": "s3fs's own async calls, in parts, unverified, not hashed",
    "files_prototype": "prototype: aiohttp, whole files, hashed, unverified",
    "files_drain": "aiohttp, read and discarded",
}


@dataclass
class Result:
    """What a run took."""

    rows: int
    seconds: float
    cpu: float
    start_mb: float
    peak_mb: float


@contextmanager
def server(**options: Any) -> Iterator[str]:
    """The mail server in a process of its own; its URL."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "server.py"), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


@contextmanager
def s3() -> Iterator[dict[str, Any]]:
    """A local S3 server; the options that reach it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    moto = Path(sys.executable).parent / "moto_server"
    process = subprocess.Popen(
        [str(moto), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    options = {
        "key": "bench",
        "secret": "bench-secret",
        "client_kwargs": {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "region_name": "us-east-1",
        },
    }
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        # Not with s3fs: a child's memory at start is never less than this process's was.
        urlopen(Request(f"http://127.0.0.1:{port}/bench-mail", method="PUT")).close()
        yield options
    finally:
        process.terminate()
        process.wait()


def run(name: str, url: str, root: str | None = None, **options: Any) -> Result:
    """One run of a contender.

    :param root: the folder to leave its output in; None leaves nothing
    """
    if root is None:
        with tempfile.TemporaryDirectory(prefix="r7mail-bench-") as passing:
            return run(name, url, passing, **options)
    if options.pop("s3", False):  # a new server: what it holds from earlier runs would slow it
        with s3() as storage:
            options |= {"attachments": "s3://bench-mail/files", "storage": storage}
            return run(name, url, root, **options)
    output, home = tempfile.mkdtemp(dir=root), tempfile.mkdtemp(dir=root)
    os.sync()  # what earlier runs wrote must not go to the disk during this one
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / "contenders.py"),
            name,
            url,
            output,
            json.dumps(options | ({"attachments": output} if options.get("local") else {})),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "R7MAIL_BENCH_PAGE": str(options.get("page", 200)),
        },
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return Result(**json.loads(done.stdout.strip().splitlines()[-1]))


def rounds(names: Sequence[str], url: str, times: int, **options: Any) -> dict[str, Result]:
    """Interleaved runs of several contenders; the median of each."""
    results: dict[str, list[Result]] = {name: [] for name in names}
    # ext4 without a journal is slow to make files where others have just been removed: what the
    # runs leave stays until the end.
    with tempfile.TemporaryDirectory(prefix="r7mail-bench-") as root:
        for number in range(times):
            first = number % len(names)  # each goes first in its turn
            for name in (*names[first:], *names[:first]):
                result = run(name, url, root, **options)
                results[name].append(result)
                rate = f"{result.rows / result.seconds:,.0f}/s"
                print(f"  round {number + 1}: {name}: {rate}", flush=True)
    return {
        name: Result(
            *(statistics.median(getattr(item, field) for item in items) for field in FIELDS)
        )
        for name, items in results.items()
    }


FIELDS = ("rows", "seconds", "cpu", "start_mb", "peak_mb")


def compare(results: dict[str, Result]) -> str:
    """A table of rows a second, and how many times faster this package is."""
    lines = [
        "| what | rows/s | this package is | CPU µs/row | peak MB (at start) |",
        "|---|---|---|---|---|",
    ]
    mine = results["ours"].rows / results["ours"].seconds
    for name, item in sorted(results.items(), key=lambda pair: pair[1].seconds / pair[1].rows):
        rate = item.rows / item.seconds
        times = "" if name == "ours" else f"{mine / rate:.1f}x"
        cpu = item.cpu / item.rows * 1e6
        lines.append(
            f"| {TITLES[name]} | {rate:,.0f} | {times} | {cpu:.0f} | "
            f"{item.peak_mb:.0f} ({item.start_mb:.0f}) |"
        )
    return "\n".join(lines)


SHAPES = {
    "": "as in the manual",
    "escaped": r"non-ASCII as `\uXXXX`",
    "unknown": "five unknown fields in each message, two in each file",
    "odd": "one odd message in a hundred",
    "unknown odd": "both",
}


def shapes() -> str:
    """Cost by what is on the pages, all in one run."""
    count = 100_000
    taken: dict[tuple[str, str], list[Result]] = {}
    with ExitStack() as servers, tempfile.TemporaryDirectory(prefix="r7mail-bench-") as root:
        urls = {
            shape: servers.enter_context(
                server(count=count, shapes=shape, attachment_every=3, attachment_bytes=10)
            )
            for shape in SHAPES
        }
        for number in range(3):
            for name in ("ours", "ours_fixed"):
                for shape, url in urls.items():
                    result = run(name, url, root)
                    taken.setdefault((name, shape), []).append(result)
                    rate = f"{result.cpu / count * 1e6:.0f} µs/row"
                    print(f"  round {number + 1}: {name}, {SHAPES[shape]}: {rate}", flush=True)
    lines = [
        "| messages | pages of | rows/s | CPU µs/row | against the manual's | peak MB (at start) |",
        "|---|---|---|---|---|---|",
    ]
    for (name, shape), results in taken.items():
        seconds, cpu, start_mb, peak_mb = (
            statistics.median(getattr(item, field) for item in results) for field in FIELDS[1:]
        )
        ratio = cpu / statistics.median(item.cpu for item in taken[name, ""])
        size = "its own size" if name == "ours" else "200"
        lines.append(
            f"| {SHAPES[shape]} | {size} | {count / seconds:,.0f} | {cpu / count * 1e6:.0f} | "
            f"{ratio:.2f}x | {peak_mb:.0f} ({start_mb:.0f}) |"
        )
    return "\n".join(lines)


def calm() -> str:
    """No latency; the page size is this package's own, or 200."""
    with server(count=200_000) as url:
        return compare(rounds(("ours", "ours_fixed", *PEERS, "prototype"), url, 3, total=200_000))


def thousands() -> str:
    """No latency, pages of 1,000 for all."""
    with server(count=200_000) as url:
        results = rounds(("ours_fixed", *PEERS[:3]), url, 3, page=1000)
    return compare({"ours": results.pop("ours_fixed"), **results})


def late() -> str:
    """100 ms for each request."""
    with server(count=50_000, latency=0.1) as url:
        return compare(rounds(("ours", "ours_fixed", *PEERS), url, 1, concurrency=8))


def day() -> str:
    """What runs all day: small windows, small files."""
    lines = ["| what | how | seconds | CPU s |", "|---|---|---|---|"]

    def add(what: str, how: str, item: Result) -> None:
        lines.append(f"| {what} | {how} | {item.seconds:.2f} | {item.cpu:.2f} |")

    with server(count=50 * 24 * 90) as url:  # 50 an hour
        for name, item in rounds(("hour", "hour_http", "hour_command"), url, 5).items():
            add("an hourly window of 50 messages, with the imports it takes", TITLES[name], item)
        names = ("many_windows", "many_windows_pandas")
        for name, item in rounds(names, url, 3).items():
            add("100 hourly windows of 50 messages, one process", TITLES[name], item)
    with server(count=2000, attachment_bytes=50_000) as url:
        names = ("ours", "files_prototype")
        for name, item in rounds(names, url, 3, concurrency=8, local=True).items():
            add("2,000 files of 50 KB, local disk", TITLES[name], item)
    with server(count=1000) as url:
        for name, item in rounds(("poll", "poll_anew", "poll_http"), url, 3).items():
            add("100 polls of a folder, one process", TITLES[name], item)
        for name, item in rounds(("send", "send_httpx"), url, 3).items():
            add("50 messages, each with a file of 50 KB", TITLES[name], item)
    return "\n".join(lines)


def over_time() -> str:
    """What looking again at earlier windows costs."""
    lines = ["| what | requests | seconds | CPU s |", "|---|---|---|---|"]

    def add(what: str, item: Result) -> None:
        lines.append(f"| {what} | {item.rows:.0f} | {item.seconds:.2f} | {item.cpu:.2f} |")
        print(lines[-1], flush=True)

    # Not one message at the very bound of each window, where counts prove nothing.
    with server(count=50 * 24 * 90 + 7) as url:
        for hours in (0, 24, 72, 720):
            what = f"an hourly run, `recheck_hours={hours}`, nothing has changed"
            add(what, run("recheck", url, hours=hours))
        add("audit of 720 windows, 36,000 messages", run("audit", url, windows=720))
        add("the same, `--deep`", run("audit", url, windows=720, deep=True))
    with server(count=1_000_000, days=365) as url:
        add("audit of 8,760 windows, 1,000,000 messages", run("audit", url, windows=8_760))
    return "\n".join(lines)


def growth() -> str:
    """Cost and memory of mailboxes of different sizes."""
    lines = ["| messages | rows/s | CPU µs/row | peak MB (at start) |", "|---|---|---|---|"]
    for count in (10_000, 50_000, 200_000, 1_000_000):
        with server(count=count) as url:
            item = rounds(("ours",), url, 3)["ours"]
        assert item.rows == count
        lines.append(
            f"| {count:,} | {count / item.seconds:,.0f} | {item.cpu / count * 1e6:.0f} | "
            f"{item.peak_mb:.0f} ({item.start_mb:.0f}) |"
        )
    return "\n".join(lines)


def files() -> str:
    """Attachments, to a disk and to S3, checked and with SHA-256."""
    lines = ["| what | where | seconds | peak MB (at start) |", "|---|---|---|---|"]

    def add(what: str, where: str, item: Result) -> None:
        lines.append(
            f"| {what} | {where} | {item.seconds:.2f} | {item.peak_mb:.0f} ({item.start_mb:.0f}) |"
        )

    with server(count=1000, attachment_bytes=1_000_000) as url:
        names = ("ours", "files_prototype", "files_drain")
        for name, item in rounds(names, url, 3, concurrency=8, local=True).items():
            add(f"1,000 x 1 MB, {TITLES[name]}", "local disk", item)
        names = ("ours", "s3fs_async", "s3fs_hashed")
        for name, item in rounds(names, url, 5, concurrency=8, s3=True).items():
            add(f"1,000 x 1 MB, {TITLES[name]}", "S3 (moto)", item)
    with server(count=3, attachment_bytes=200_000_000) as url:
        item = run("ours", url, concurrency=8, local=True)
        add("3 x 200 MB, **this package**", "local disk", item)
        for name, item in rounds(("ours", "s3fs_parts"), url, 3, concurrency=8, s3=True).items():
            add(f"3 x 200 MB, {TITLES[name]}", "S3 (moto)", item)
    with server(count=1, attachment_bytes=1_000_000_000) as url:
        what = "1 x 1 GB, **this package**"
        add(what, "local disk", run("ours", url, concurrency=8, local=True))
        add(what, "S3 (moto)", run("ours", url, concurrency=8, s3=True))
    return "\n".join(lines)


def windows() -> str:
    """A year of hourly windows, before and after they are compacted into months."""
    with tempfile.TemporaryDirectory(prefix="r7mail-bench-") as folder:
        os.environ |= {"AIRFLOW_HOME": f"{folder}/airflow", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        root = Path(folder) / "tables"
        make_year(root)
        before = read_windows(root, "before")
        command = [str(Path(sys.executable).parent / "r7mail"), "compact", f"--output={root}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = read_windows(root, "after")
    head = ("reader", "what", "disk, seconds", "S3, seconds", "S3, requests")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|"]
    for (reader, what), taken in before.items():
        now = after[reader, what]
        lines.append(
            f"| {reader} | {what} | {taken['disk'][0]:.2f} → {now['disk'][0]:.2f} | "
            f"{taken['S3'][0]:.2f} → {now['S3'][0]:.2f} | {taken['S3'][1]:,} → {now['S3'][1]:,} |"
        )
    return "\n".join(lines)


Readings = dict[tuple[str, str], dict[str, tuple[float, int]]]


def read_windows(root: Path, state: str) -> Readings:
    """Return the seconds and requests of each reading, from the disk and from S3."""
    from upath import UPath

    found: Readings = {}

    def measure(store: str, requests: Callable[[], int], lake: str, tables: Any) -> None:
        for (reader, what), read in readers(lake, tables).items():
            requests()
            begun = time.perf_counter()
            read()
            taken = (time.perf_counter() - begun, requests())
            print(f"  {state}, {store}: {reader}, {what}: {taken}", flush=True)
            found.setdefault((reader, what), {})[store] = taken

    measure("disk", int, root.parent.as_uri(), UPath(root))
    with served(root) as (options, requests):
        connection = {
            "conn_type": "aws",
            "login": options["key"],
            "password": options["secret"],
            "extra": options["client_kwargs"],
        }
        os.environ[f"AIRFLOW_CONN_BENCH_{state.upper()}"] = json.dumps(connection)
        lake = f"s3://bench_{state}@{BUCKET}"
        measure("S3", requests, lake, UPath(f"s3://{BUCKET}/tables", **options))
    return found


@contextmanager
def served(root: Path) -> Iterator[tuple[dict[str, Any], Callable[[], int]]]:
    """The tables in an S3 server: the options that reach it, and what counts requests."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "windows.py"), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    say, hear = process.stdin, process.stdout

    def requests() -> int:
        print(file=say, flush=True)
        return int(hear.readline())

    try:
        url = hear.readline().strip()
        where = {"endpoint_url": url, "region_name": "us-east-1"}
        yield {"key": "bench", "secret": "bench-secret", "client_kwargs": where}, requests
    finally:
        say.close()
        process.wait()


def readers(lake: str, tables: Any) -> dict[tuple[str, str], Callable[[], Any]]:
    """Return what reads the tables, by its name and what it reads."""
    import duckdb

    from airflow_provider_r7mail.lake.reading import read_table

    sys.path.insert(0, str(HERE.parents[1] / "dags"))
    from mail_analytics_tables import read_tables

    spans = {
        "one day": (datetime(2025, 6, 10, tzinfo=UTC), datetime(2025, 6, 11, tzinfo=UTC)),
        "one month": (datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC)),
        "the year": (datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
    }
    text = (HERE.parents[1] / "docs/sql/duckdb.sql").read_text(encoding="utf-8")
    views = text.partition("SET VARIABLE recipients")[0].replace("/data/mail", str(tables))

    connection = duckdb.connect()
    if "://" in str(tables):  # not with httpfs, which would have to be downloaded
        connection.register_filesystem(tables.fs)

    def ask(start: datetime, end: datetime) -> Any:
        query = (
            "FROM messages SELECT from_address, count(*) WHERE date >= ? AND date < ? GROUP BY 1"
        )
        return connection.execute(query, [start, end]).fetchall()

    found: dict[tuple[str, str], Callable[[], Any]] = {
        ("DuckDB", "`duckdb.sql`, the view `messages`"): partial(connection.execute, views)
    }
    for what, span in spans.items():
        found["DuckDB", f"then {what}"] = partial(ask, *span)
    for what, (start, end) in spans.items():
        found["`read_table`", what] = partial(
            read_table,
            tables / "messages",
            ["date", "from_address"],
            start=start,
            end=end,
        )
    wanted = [
        ("messages", ["date", "thread_id", "is_auto_submitted", "was_read", "gone_at"]),
        ("attachments", ["file_name", "size"]),
    ]
    found["`mail_analytics`", "the year, two tables"] = partial(read_tables, lake, wanted)
    return found


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    measure: Callable[[], str]
    text: str = ""


SECTIONS = {
    "calm": Section(
        "200,000 messages to Parquet, no latency",
        calm,
        "All request 200 messages at a time, except that this package chooses a page size unless "
        "`page_size` is set.",
    ),
    "thousands": Section("The same, 1,000 messages at a time for all", thousands),
    "shapes": Section(
        "100,000 messages that are not as in the manual",
        shapes,
        "One message in three has a file. The odd messages have children, a TaskId, labels, a size "
        "or a sender of another type, a date that can't be read, or half a surrogate pair. Slowest "
        "are pages with both. Fields that were odd before and unknown ones are made Python objects "
        "first, and unknown ones are written as JSON text again; on a page with half a surrogate "
        "pair, that goes for all fields.",
    ),
    "late": Section("50,000 messages, 100 ms per request, `max_concurrency=8`, one round", late),
    "growth": Section("Cost by mailbox size", growth),
    "day": Section(
        "Small windows and small files",
        day,
        "A window has a fixed cost here: requests that show that nothing was passed over, a lock, "
        "a manifest and files of three tables, written so that they survive a crash. The prototype "
        "verifies nothing.",
    ),
    "time": Section(
        "Late mail, and audits",
        over_time,
        "All windows are hourly and in order. A run's own window takes the requests of the first "
        "line; each look at an earlier window adds one, and the last look reads the window.",
    ),
    "windows": Section(
        "A year of hourly windows, before and after `r7mail compact`",
        windows,
        "8,760 windows of five messages and three tables, read before → after. Before, each file "
        "takes a request, and the listings of a table 36. DuckDB reads S3 with s3fs, and keeps "
        "what it has read for the session. S3 is moto on the same machine, which answers some "
        "hundred requests per second. One round.",
    ),
    "files": Section(
        "Attachments, verified against Content-Length and the listed size, SHA-256 recorded", files
    ),
}
DOES = """\
| what | tables | exactly once | unknown fields | memory |
|---|---|---|---|---|
| **this package** | three, and a manifest | yes | kept in `extra` | bounded |
| hand-written loops + pandas | one | no: offsets shift | columns; mixed types fail | all rows |
| Airflow HttpOperator + pandas | one | no | the same | all rows, twice |
| dlt rest_api, tuned | one | no | columns | bounded by its buffers |
| prototype | one | no: knows the offsets, checks nothing | dropped | bounded |"""


def main(only: Sequence[str]) -> None:
    """Measure, print, and write the sections into the page; the others stay as they are."""
    found = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    parts = dict(re.findall(r"^## (.*)\n\n((?:(?!^## )[^\n]*\n?)*)", found, flags=re.MULTILINE))
    for name in only or SECTIONS:
        section = SECTIONS[name]
        print(section.title, flush=True)
        table = section.measure()
        print(table, flush=True)
        text = f"{section.text}\n\n" if section.text else ""
        parts[section.title] = f"{text}{table}\n\nMeasured on {datetime.now(UTC):%Y-%m-%d}.\n"
    names = ("httpx", "httpx-aiohttp", "aiohttp", "pyarrow", "pandas", "apache-airflow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    head = f"""# Speed

Measured with `make bench`: {platform.machine()}, {os.cpu_count()} cores,
Python {platform.python_version()}; {versions}. Client and server share the machine, over
loopback; figures vary between runs, so only compare within a table. The server responds from
memory (messages of 1-4 KB, Russian and English). Medians of three interleaved rounds. CPU is the
whole process's, user and system, without imports.

{DOES}
"""
    sections = [
        f"## {section.title}\n\n{parts[section.title].strip()}\n"
        for section in SECTIONS.values()
        if section.title in parts
    ]
    PAGE.write_text("\n".join([head, *sections]), encoding="utf-8")
    print(f"Written to {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1:])
