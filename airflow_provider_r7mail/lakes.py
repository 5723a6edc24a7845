"""What operators that read or write tables share: a storage path, and a run that can be stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from airflow_provider_r7mail.client.parameters import need_text, read_text
from airflow_provider_r7mail.compat import (
    AirflowException,
    AirflowNotFoundException,
    BaseHook,
    BaseOperator,
)
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.files import open_storage
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.lake.catalog import (
    DEFAULT_NAMESPACE,
    IcebergTarget,
    connection_properties,
)
from airflow_provider_r7mail.lake.location import parse_location
from airflow_provider_r7mail.lake.threads import STOP_SECONDS, LoopHangsError, LoopThread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from airflow_provider_r7mail.client.session import AsyncClient
    from airflow_provider_r7mail.lake.storage import ObjectPath

T = TypeVar("T")


class LakeOperator(BaseOperator):
    """Base of the operators with a storage and a run on an event loop of its own.

    :param storage_conn_id: the connection of the object storage
    :param r7mail_conn_id: the Airflow connection
    """

    def __init__(
        self,
        *,
        storage_conn_id: str | None = None,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.storage_conn_id = storage_conn_id
        self.r7mail_conn_id = r7mail_conn_id
        self._loop: LoopThread | None = None

    def _root(self, name: str) -> ObjectPath:
        """Return the storage path that a parameter holds."""
        self.storage_conn_id = read_text(self.storage_conn_id, "storage_conn_id")
        return self._path(read_text(getattr(self, name), name) or "", name)

    def _path(self, value: str, name: str) -> ObjectPath:
        return open_storage(parse_location(value, name), name, self.storage_conn_id)

    def _run(self, hook: R7MailHook, work: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
        async def connected() -> T:
            async with await hook.aget_conn() as client:
                return await work(client)

        self._loop = LoopThread()
        try:
            return self._loop.run(connected)
        except asyncio.CancelledError:
            raise AirflowException(
                "Stopped. Partial output was removed; the next try starts over."
            ) from None
        except LoopHangsError:
            raise AirflowException(
                f"Stopped, but the storage did not respond within {STOP_SECONDS:g} seconds. "
                "Partial output may be left; the next try removes it and starts over."
            ) from None
        finally:
            self._loop = None

    def on_kill(self) -> None:
        """Stop the task: partial output is removed, and an earlier result stays in place."""
        if self._loop is not None:
            self._loop.stop()


class TableOperator(LakeOperator):
    """Base of the operators for tables of both kinds.

    :param table_format: `parquet`, or `iceberg` for the tables of a catalog
    :param catalog_conn_id: for Iceberg, the connection of the catalog
    :param catalog_properties: for Iceberg, pyiceberg properties of the catalog
    :param namespace: for Iceberg, the namespace of the tables
    """

    def __init__(
        self,
        *,
        table_format: Literal["parquet", "iceberg"] = "parquet",
        catalog_conn_id: str | None = None,
        catalog_properties: Mapping[str, str] | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table_format = table_format
        self.catalog_conn_id = catalog_conn_id
        self.catalog_properties = catalog_properties
        self.namespace = namespace

    def _iceberg(self) -> IcebergTarget | None:
        """Return the catalog of the tables; None for Parquet.

        :raises R7MailConfigError: a parameter is wrong
        """
        if self.table_format not in {"parquet", "iceberg"}:
            raise R7MailConfigError(
                f"table_format: {self.table_format!r}. Known: parquet, iceberg."
            )
        if self.table_format == "parquet":
            for name in ("catalog_conn_id", "catalog_properties", "namespace"):
                if getattr(self, name) not in (None, "", {}, DEFAULT_NAMESPACE):
                    raise R7MailConfigError(f'{name}: only for table_format="iceberg".')
            return None
        properties: dict[str, str] = {}
        if conn_id := read_text(self.catalog_conn_id, "catalog_conn_id"):
            try:
                conn = BaseHook.get_connection(conn_id)
            except AirflowNotFoundException as error:
                raise R7MailConfigError(f"catalog_conn_id: {error}.") from error
            extra = conn.extra_dejson
            properties = connection_properties(conn.host, conn.login, conn.password, extra)
            if not properties:
                raise R7MailConfigError(
                    f"catalog_conn_id: {conn_id} has neither a host nor an extra."
                )
        given: object = self.catalog_properties or {}
        if not isinstance(given, Mapping):
            kind = type(given).__name__
            raise R7MailConfigError(f"catalog_properties: expected a dict, got {kind}.")
        for name, item in given.items():
            plain = str(item) if isinstance(item, bool) else item
            text = read_text(plain, f"catalog_properties {name}")
            if text is not None:
                properties[name] = text
        return IcebergTarget(properties, need_text(self.namespace, "namespace"))
