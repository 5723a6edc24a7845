"""What is measured: this package, and what a user would pick instead. Each runs in a process.

    python contenders.py NAME URL OUTPUT [OPTIONS AS JSON]

prints one line of JSON: rows, seconds, CPU seconds and peak memory of the work, imports left out.
All page through the same folder of the same server, and write Parquet: by 200 messages unless told
otherwise, but for this package, which finds a page size by itself where none is given.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.benchmarks.routines import ROUTINES

LOGIN = {"Login": "user_test", "Password": "TestPassword"}
LIST = "/api/v1/email/Messages"
PAGE = int(os.environ.get("R7MAIL_BENCH_PAGE", "200"))
START, END = "2025-01-01T00:00:00.000Z", "2025-04-02T00:00:00.000Z"


def question(offset: int, size: int = PAGE) -> dict[str, Any]:
    """The body of Messages."""
    return {
        "folderId": 24,
        "SearchContext": {"StartDate": START, "EndDate": END},
        "offset": offset,
        "size": size,
        "sortOrder": 1,
        "orderField": "Date",
    }


def ours(url: str, output: Path, options: dict[str, Any]) -> Callable[[], int]:
    """Run this package: three tables, exactly once, manifest."""
    import aiohttp  # noqa: F401 - so that its import is not measured
    import pyarrow.compute
    import pyarrow.json
    import pyarrow.parquet  # noqa: F401

    from airflow_provider_r7mail.client.http import ClientConfig
    from airflow_provider_r7mail.client.session import AsyncClient
    from airflow_provider_r7mail.lake.window import extract_window

    config = ClientConfig(
        url=url,
        login=LOGIN["Login"],
        password=LOGIN["Password"],
        max_concurrency=options.get("concurrency", 4),
    )
    files = options.get("attachments")
    if "storage" in options:
        import s3fs  # noqa: F401
    job = _job(output, options)

    async def run() -> int:
        async with AsyncClient(config) as client:
            manifest = await extract_window(client, job)
        wanted = {"downloaded": manifest["messages"]} if files is not None else {}
        if files is not None and manifest["attachments"] != wanted:
            raise RuntimeError(manifest["attachments"])
        return int(manifest["messages"])

    return lambda: asyncio.run(run())


def _job(output: Path, options: dict[str, Any]) -> Any:
    from upath import UPath

    from airflow_provider_r7mail.client.models import MessageFilter
    from airflow_provider_r7mail.lake.job import ExtractJob

    files = options.get("attachments")
    return ExtractJob(
        folder=24,
        criteria=MessageFilter.build(start=START, end=END),
        output=UPath(output),
        attachments=None if files is None else UPath(files, **options.get("storage", {})),
        page_size=options.get("page_size"),
    )


def ours_fixed(url: str, output: Path, options: dict[str, Any]) -> Callable[[], int]:
    """Run this package with pages as long as those of the others."""
    return ours(url, output, {**options, "page_size": PAGE})


def many_windows(url: str, output: Path, options: dict[str, Any]) -> Callable[[], int]:
    """Run this package for each of 100 hourly windows, in one process."""
    from dataclasses import replace

    import aiohttp  # noqa: F401 - so that its import is not measured
    import pyarrow.compute
    import pyarrow.json
    import pyarrow.parquet  # noqa: F401

    from airflow_provider_r7mail.client.http import ClientConfig
    from airflow_provider_r7mail.client.models import MessageFilter
    from airflow_provider_r7mail.client.session import AsyncClient
    from airflow_provider_r7mail.lake.window import extract_window

    config = ClientConfig(url=url, login=LOGIN["Login"], password=LOGIN["Password"])
    job = _job(output, options)

    async def run() -> int:
        rows = 0
        async with AsyncClient(config) as client:
            for start, end in pairwise(hours(100)):
                criteria = MessageFilter.build(start=start, end=end)
                rows += (await extract_window(client, replace(job, criteria=criteria)))["messages"]
        return rows

    return lambda: asyncio.run(run())


def many_windows_pandas(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """A hand-written loop with httpx and pandas for each of 100 hourly windows, in one process."""
    import httpx
    import pandas as pd  # noqa: F401

    def run() -> int:
        rows = 0
        with httpx.Client(base_url=url, timeout=60) as client:
            answer = client.post("/api/v2/auth/Login", json=LOGIN).json()
            client.headers["Authorization"] = answer["Response"]["Data"]["Tokens"]["AuthToken"]
            for start, end in pairwise(hours(100)):
                offset, found = 0, []
                while True:
                    body = question(offset)
                    body["SearchContext"] = {"StartDate": start, "EndDate": end}
                    items = client.post(LIST, json=body).raise_for_status().json()["Items"]
                    found += items
                    offset += len(items)
                    if len(items) < PAGE:
                        break
                rows += to_parquet(found, output / start.replace(":", ""))
        return rows

    return run


def hours(count: int) -> list[str]:
    """The bounds of hourly windows from START on."""
    first = datetime.fromisoformat(START)
    return [f"{first + timedelta(hours=n):%Y-%m-%dT%H:%M:%S.000Z}" for n in range(count + 1)]


def pages(post: Callable[[str, dict[str, Any]], Any]) -> Iterator[list[dict[str, Any]]]:
    """The loop that everybody writes: offsets, until a page is empty."""
    offset = 0
    while items := post(LIST, question(offset))["Items"]:
        yield items
        offset += len(items)


def to_parquet(rows: list[dict[str, Any]], output: Path) -> int:
    """Write with pandas."""
    import pandas as pd

    output.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(output / "messages.parquet")
    return len(rows)


def requests_pandas(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """A hand-written loop with requests and pandas."""
    import pandas as pd  # noqa: F401
    import requests

    def run() -> int:
        with requests.Session() as session:
            answer = session.post(f"{url}/api/v2/auth/Login", json=LOGIN).json()
            session.headers["Authorization"] = answer["Response"]["Data"]["Tokens"]["AuthToken"]

            def post(path: str, body: dict[str, Any]) -> Any:
                response = session.post(url + path, json=body)
                response.raise_for_status()
                return response.json()

            return to_parquet([row for page in pages(post) for row in page], output)

    return run


def httpx_pandas(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """A hand-written loop with httpx and pandas."""
    import httpx
    import pandas as pd  # noqa: F401

    def run() -> int:
        with httpx.Client(base_url=url, timeout=60) as client:
            answer = client.post("/api/v2/auth/Login", json=LOGIN).json()
            client.headers["Authorization"] = answer["Response"]["Data"]["Tokens"]["AuthToken"]

            def post(path: str, body: dict[str, Any]) -> Any:
                return client.post(path, json=body).raise_for_status().json()

            return to_parquet([row for page in pages(post) for row in page], output)

    return run


def http_operator(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Airflow's HttpOperator with its pagination, and pandas."""
    import httpx
    import pandas as pd  # noqa: F401

    host, port = url.removeprefix("http://").split(":")
    os.environ["AIRFLOW_CONN_HTTP_DEFAULT"] = json.dumps(
        {"conn_type": "http", "host": host, "port": int(port), "schema": "http"}
    )
    from airflow.providers.http.operators.http import HttpOperator

    login = httpx.post(f"{url}/api/v2/auth/Login", json=LOGIN).json()
    token = login["Response"]["Data"]["Tokens"]["AuthToken"]
    offset = 0

    def following(response: Any) -> dict[str, Any] | None:
        nonlocal offset
        offset += PAGE
        if len(response.json()["Items"]) < PAGE:
            return None
        return {"data": json.dumps(question(offset))}

    operator = HttpOperator(
        task_id="messages",
        endpoint=LIST,
        method="POST",
        data=json.dumps(question(0)),
        headers={"Content-Type": "application/json", "Authorization": token},
        pagination_function=following,
        response_filter=lambda answers: [
            row for answer in answers for row in answer.json()["Items"]
        ],
    )
    return lambda: to_parquet(operator.execute({}), output)


def dlt_rest_api(url: str, output: Path, options: dict[str, Any]) -> Callable[[], int]:
    """Run dlt's rest_api source, tuned: large buffers, no child tables, all cores."""
    os.environ.update(
        {
            "DATA_WRITER__BUFFER_MAX_ITEMS": "20000",
            "NORMALIZE__WORKERS": "2",
            "NORMALIZE__DATA_WRITER__FILE_MAX_ITEMS": "50000",
            "EXTRACT__DATA_WRITER__FILE_MAX_ITEMS": "50000",
            "LOAD__WORKERS": "2",
            "DLT_TELEMETRY": "false",
            "RUNTIME__DLTHUB_TELEMETRY": "false",
            "RUNTIME__LOG_LEVEL": "ERROR",
        }
    )
    import dlt
    import httpx
    from dlt.sources.rest_api import rest_api_source

    login = httpx.post(f"{url}/api/v2/auth/Login", json=LOGIN).json()
    token = login["Response"]["Data"]["Tokens"]["AuthToken"]

    def run() -> int:
        source = rest_api_source(
            {
                "client": {"base_url": url, "headers": {"Authorization": token}},
                "resources": [
                    {
                        "name": "messages",
                        "endpoint": {
                            "path": LIST,
                            "method": "POST",
                            "json": question(0),
                            "data_selector": "Items",
                            "paginator": {
                                "type": "offset",
                                "limit": PAGE,
                                "offset_body_path": "offset",
                                "limit_body_path": "size",
                                "total_path": "Count",
                            },
                        },
                    }
                ],
            }
        )
        source.max_table_nesting = 0
        pipeline = dlt.pipeline(
            "bench",
            destination=dlt.destinations.filesystem(bucket_url=output.as_uri()),
            dataset_name="mail",
            pipelines_dir=str(output / "state"),
        )
        pipeline.run(source, loader_file_format="parquet")
        trace = pipeline.last_trace.last_normalize_info
        return int(trace.row_counts["messages"])

    return run


def prototype(url: str, output: Path, options: dict[str, Any]) -> Callable[[], int]:
    """The least there is to do: offsets known beforehand, one table, httpx over aiohttp."""
    import httpx
    import pyarrow as pa
    import pyarrow.json as pj
    import pyarrow.parquet as pq
    from httpx_aiohttp import AiohttpTransport

    from airflow_provider_r7mail.lake.decode import wire_schema  # the same columns

    def decode(body: bytes) -> pa.Table:
        answer = pj.read_json(
            pa.BufferReader(body),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(body) + 1),
            parse_options=pj.ParseOptions(explicit_schema=wire_schema()),
        )
        items = answer["Items"].chunk(0).flatten()
        return pa.Table.from_arrays(items.flatten(), [field.name for field in items.type])

    output.mkdir(parents=True, exist_ok=True)

    async def run() -> int:
        writer: pq.ParquetWriter | None = None
        total, rows = options["total"], 0
        batch: list[pa.Table] = []
        offsets = iter(range(0, total, PAGE))
        async with httpx.AsyncClient(
            base_url=url, transport=AiohttpTransport(), timeout=60
        ) as client:
            answer = (await client.post("/api/v2/auth/Login", json=LOGIN)).json()
            client.headers["Authorization"] = answer["Response"]["Data"]["Tokens"]["AuthToken"]

            gate = asyncio.Lock()

            async def work() -> None:
                nonlocal writer, rows, batch
                for offset in offsets:
                    response = await client.post(LIST, json=question(offset))
                    table = await asyncio.to_thread(decode, response.content)
                    batch.append(table)
                    rows += table.num_rows
                    if len(batch) == 20:
                        whole = pa.concat_tables(batch)
                        batch = []
                        writer = writer or pq.ParquetWriter(
                            output / "messages.parquet",
                            whole.schema,
                            compression="zstd",
                            compression_level=1,
                        )
                        async with gate:
                            await asyncio.to_thread(writer.write_table, whole)

            await asyncio.gather(*(work() for _ in range(4)))
        if batch and writer is not None:
            writer.write_table(pa.concat_tables(batch))
        if writer is not None:
            writer.close()
        return rows

    return lambda: asyncio.run(run())


def _files(url: str, take: Callable[[int, bytes], None] | None) -> Callable[[], int]:
    """Read all attachments with aiohttp, eight at once; without `take`, throw them away."""
    import aiohttp

    async def run() -> int:
        async with aiohttp.ClientSession(url) as session:
            async with session.post("/api/v2/auth/Login", json=LOGIN) as response:
                answer = await response.json()
            session.headers["Authorization"] = answer["Response"]["Data"]["Tokens"]["AuthToken"]
            names: list[tuple[int, str]] = []
            while True:
                async with session.post(LIST, json=question(len(names))) as response:
                    items = (await response.json())["Items"]
                if not items:
                    break
                names += [(item["Id"], item["Attachments"][0]["FileName"]) for item in items]
            waiting = iter(names)

            async def work() -> None:
                for message_id, name in waiting:
                    query: dict[str, str | int] = {
                        "folderId": 24,
                        "Id": message_id,
                        "FileName": name,
                    }
                    async with session.get("/api/v1/email/Attachments", params=query) as response:
                        if take is not None:
                            data = await response.read()
                            await asyncio.to_thread(take, message_id, data)
                        else:
                            async for _ in response.content.iter_chunked(1 << 16):
                                pass

            await asyncio.gather(*(work() for _ in range(8)))
        return len(names)

    return lambda: asyncio.run(run())


def files_drain(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Read the attachments and throw them away: what no copying can beat."""
    return _files(url, None)


def files_prototype(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Copy whole attachments to a disk under their ids, hashed in threads, unchecked."""
    output.mkdir(parents=True, exist_ok=True)

    def take(message_id: int, data: bytes) -> None:
        hashlib.sha256(data).hexdigest()
        (output / str(message_id)).write_bytes(data)

    return _files(url, take)


def s3fs_hashed(url: str, output: Path, options: dict[str, Any]) -> Callable[[], int]:
    """The same with the SHA-256 that this package records."""
    return s3fs_async(url, output, {**options, "hashed": True})


def s3fs_async(url: str, output: Path, options: dict[str, Any]) -> Callable[[], int]:
    """Attachments put into S3 whole, by s3fs's own async calls, eight at once, not checked."""

    async def put(store: Any, target: str, response: Any) -> None:
        data = await response.aread()
        if options.get("hashed"):
            hashlib.sha256(data).hexdigest()
        await store._pipe_file(target, data)

    return _to_s3(url, options, put)


def s3fs_parts(url: str, output: Path, options: dict[str, Any]) -> Callable[[], int]:
    """Attachments streamed to S3 in parts, by s3fs's own async calls, not checked."""

    async def put(store: Any, target: str, response: Any) -> None:
        bucket, key, _ = store.split_path(target)
        where = {"Bucket": bucket, "Key": key}
        where["UploadId"] = (await store._call_s3("create_multipart_upload", **where))["UploadId"]
        parts: list[dict[str, Any]] = []

        async def send(data: bytes) -> None:
            number = len(parts) + 1
            sent = await store._call_s3("upload_part", **where, PartNumber=number, Body=data)
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})

        waiting = bytearray()
        async for piece in response.aiter_raw(1 << 20):
            waiting += piece
            if len(waiting) >= 8 << 20:
                await send(bytes(waiting))
                waiting.clear()
        await send(bytes(waiting))
        await store._call_s3("complete_multipart_upload", **where, MultipartUpload={"Parts": parts})

    return _to_s3(url, options, put)


def _to_s3(
    url: str, options: dict[str, Any], put: Callable[[Any, str, Any], Awaitable[None]]
) -> Callable[[], int]:
    import httpx
    from httpx_aiohttp import AiohttpTransport
    from s3fs import S3FileSystem

    async def run() -> int:
        store = S3FileSystem(asynchronous=True, skip_instance_cache=True, **options["storage"])
        await store.set_session()
        names = []
        gate = asyncio.Semaphore(8)
        async with httpx.AsyncClient(
            base_url=url, transport=AiohttpTransport(), timeout=60
        ) as client:
            answer = (await client.post("/api/v2/auth/Login", json=LOGIN)).json()
            client.headers["Authorization"] = answer["Response"]["Data"]["Tokens"]["AuthToken"]
            offset = 0
            while items := (await client.post(LIST, json=question(offset))).json()["Items"]:
                names += [(item["Id"], item["Attachments"][0]["FileName"]) for item in items]
                offset += len(items)

            async def copy(message_id: int, name: str) -> None:
                query: dict[str, str | int] = {
                    "folderId": 24,
                    "Id": message_id,
                    "FileName": name,
                }
                path = "/api/v1/email/Attachments"
                async with gate, client.stream("GET", path, params=query) as response:
                    target = f"{options['attachments']}/{message_id}/{name}"
                    await put(store, target, response)

            await asyncio.gather(*(copy(*item) for item in names))
        return len(names)

    return lambda: asyncio.run(run())


CONTENDERS = {
    function.__name__: function
    for function in (
        ours,
        ours_fixed,
        many_windows,
        many_windows_pandas,
        requests_pandas,
        httpx_pandas,
        http_operator,
        dlt_rest_api,
        prototype,
        s3fs_async,
        s3fs_hashed,
        s3fs_parts,
        files_drain,
        files_prototype,
    )
} | ROUTINES


def main() -> None:
    """Run one, and print what it took."""
    name, url, output = sys.argv[1:4]
    options = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    run = CONTENDERS[name](url, Path(output), options)
    before = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    rows = run()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (
        after.ru_utime
        + after.ru_stime
        - before.ru_utime
        - before.ru_stime
        + ended.ru_utime
        + ended.ru_stime
        - children.ru_utime
        - children.ru_stime
    )
    print(
        json.dumps(
            {
                "rows": rows,
                "seconds": seconds,
                "cpu": cpu,
                "start_mb": before.ru_maxrss / 1024,
                "peak_mb": max(after.ru_maxrss, ended.ru_maxrss) / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
