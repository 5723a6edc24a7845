"""Airflow's names, from where each version has them: 2.11 to 3.3.

Airflow's own constraints pin `common-compat` to versions without most of these: 1.7 with Airflow
2.11.0 and 3.0.6.
"""

from __future__ import annotations

from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING

from airflow import __version__
from airflow.providers.common.compat.notifier import BaseNotifier
from airflow.triggers.base import BaseTrigger
from asgiref.sync import sync_to_async

AIRFLOW = tuple(int(part) for part in __version__.split(".")[:2])
"""The running Airflow's version: (2, 11)."""

if TYPE_CHECKING or AIRFLOW >= (3, 0):
    from airflow.sdk import (
        DAG,
        Asset,
        AssetAlias,
        BaseOperator,
        BaseOperatorLink,
        BaseSensorOperator,
        Connection,
        Context,
        ObjectStoragePath,
        PokeReturnValue,
        Variable,
    )
    from airflow.sdk.execution_time.xcom import XCom
    from airflow.triggers.base import BaseEventTrigger
else:
    from airflow.datasets import Dataset as Asset
    from airflow.datasets import DatasetAlias as AssetAlias
    from airflow.io.path import ObjectStoragePath
    from airflow.models.baseoperator import BaseOperator
    from airflow.models.baseoperatorlink import BaseOperatorLink
    from airflow.models.connection import Connection
    from airflow.models.dag import DAG
    from airflow.models.variable import Variable
    from airflow.models.xcom import XCom
    from airflow.sensors.base import BaseSensorOperator, PokeReturnValue

    BaseEventTrigger = BaseTrigger
    from airflow.utils.context import Context

if TYPE_CHECKING or AIRFLOW >= (3, 1):
    from airflow.sdk import BaseHook
    from airflow.sdk.log import mask_secret, redact  # type: ignore[attr-defined]
elif AIRFLOW >= (3, 0):
    from airflow.hooks.base import BaseHook
    from airflow.sdk.execution_time.secrets_masker import redact
    from airflow.sdk.log import mask_secret
else:
    from airflow.hooks.base import BaseHook
    from airflow.utils.log.secrets_masker import mask_secret, redact

if TYPE_CHECKING or AIRFLOW >= (3, 2):
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
    )
else:
    from airflow.configuration import conf
    from airflow.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
    )

if TYPE_CHECKING or AIRFLOW >= (3, 3):
    from airflow.sdk.log import amask_secret
else:
    # In a thread that sends to the supervisor through the event loop it comes from.
    amask_secret = sync_to_async(mask_secret)

__all__ = [
    "AIRFLOW",
    "DAG",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "Asset",
    "AssetAlias",
    "BaseEventTrigger",
    "BaseHook",
    "BaseNotifier",
    "BaseOperator",
    "BaseOperatorLink",
    "BaseSensorOperator",
    "Connection",
    "Context",
    "ObjectStoragePath",
    "PokeReturnValue",
    "Variable",
    "XCom",
    "amask_secret",
    "conf",
    "date_time_trigger",
    "get_async_connection",
    "mask_secret",
    "redact",
]


def date_time_trigger(moment: datetime) -> BaseTrigger:
    """Return the trigger that fires at a moment."""
    home = "airflow.providers.standard" if AIRFLOW >= (3, 0) else "airflow"
    trigger: BaseTrigger = import_module(f"{home}.triggers.temporal").DateTimeTrigger(moment)
    return trigger


async def get_async_connection(hook: BaseHook, conn_id: str) -> Connection:
    """Look up a connection on an event loop, with its secrets masked.

    Before Airflow 3.3.2 its own way masks them by a call that can deadlock the loop.
    """
    if hasattr(Connection, "aextra_dejson"):  # came with 3.3.2
        return await hook.aget_connection(conn_id)
    return await sync_to_async(hook.get_connection)(conn_id)
