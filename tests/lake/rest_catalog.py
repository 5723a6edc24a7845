"""An Iceberg REST catalog on a real socket, which refuses or ignores what some catalogs do.

It keeps its tables in a SQL catalog.
"""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import CreateTableRequest
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.table import CommitTableRequest, Table

STATUSES: dict[type[Exception], int] = {
    CommitFailedException: 409,
    NamespaceAlreadyExistsError: 409,
    NoSuchNamespaceError: 404,
    NoSuchTableError: 404,
    NotImplementedError: 406,
    PermissionError: 403,
    TableAlreadyExistsError: 409,
}


@dataclass
class RestCatalog:
    """What the catalog does.

    :param tables: the catalog that has the tables
    :param stages: whether it refuses to stage a new table, or ignores that it should only do so
    :param forbidden: the requests that it forbids: a method, and a path without names
    :param vend: gives the properties for the storage to whoever loads a table
    """

    tables: Catalog
    stages: str = "ignored"
    forbidden: set[str] = field(default_factory=set)
    vend: Callable[[], dict[str, str]] = dict
    uri: str = ""
    requests: list[str] = field(default_factory=list)

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> dict[str, Any]:
        """Answer a request to a path below `/v1`."""
        kind = f"{method} {'/'.join(path[::2])}"
        self.requests.append(kind)
        if kind in self.forbidden:
            raise PermissionError(kind)
        match path:
            case ["config"]:
                return {"defaults": {}, "overrides": {}}
            case ["namespaces"]:
                self.tables.create_namespace(tuple(body["namespace"]))
                return body
            case ["namespaces", name]:
                properties = self.tables.load_namespace_properties(name)
                return {"namespace": [name], "properties": properties}
            case ["namespaces", name, "tables"]:
                if body["stage-create"] and self.stages == "refused":
                    raise NotImplementedError("stage-create")
                wanted = CreateTableRequest.model_validate({"location": None, **body})
                return self._told(
                    self.tables.create_table(
                        (name, wanted.name),
                        wanted.table_schema,
                        partition_spec=wanted.partition_spec or (),  # type: ignore[arg-type]
                        properties=wanted.properties,
                    )
                )
            case ["namespaces", *identifier]:
                table = self.tables.load_table((identifier[0], identifier[2]))
                if method == "POST":
                    change = CommitTableRequest.model_validate(body)
                    self.tables.commit_table(table, change.requirements, change.updates)
                return self._told(table.refresh())
        raise NoSuchTableError(path)

    def _told(self, table: Table) -> dict[str, Any]:
        return {
            "metadata-location": table.metadata_location,
            "metadata": json.loads(table.metadata.model_dump_json()),
            "config": self.vend(),
        }


@contextmanager
def served(catalog: RestCatalog) -> Iterator[RestCatalog]:
    """Serve a catalog at its `uri`."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size) or b"{}")
            path = self.path.split("?")[0].split("/")[2:]
            try:
                status, answer = 200, catalog.answer(self.command, path, body)
            except tuple(STATUSES) as error:
                status = STATUSES[type(error)]
                told = {"message": str(error), "type": type(error).__name__, "code": status}
                answer = {"error": told}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = respond  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            catalog.uri = f"http://127.0.0.1:{server.server_port}"
            yield catalog
        finally:
            server.shutdown()
            thread.join()
