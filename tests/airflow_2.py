"""What the DAGs in these tests take from `airflow.sdk`, for Airflow 2, which has none."""

from airflow.decorators import task  # type: ignore[attr-defined]

from airflow_provider_r7mail.compat import (
    DAG,
    Asset,
    AssetAlias,
    BaseOperator,
    ObjectStoragePath,
)

__all__ = ["DAG", "Asset", "AssetAlias", "BaseOperator", "ObjectStoragePath", "task"]
