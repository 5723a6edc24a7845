"""The command `r7mail`."""

from airflow_provider_r7mail.cli.commands import app

__all__ = ["app"]
