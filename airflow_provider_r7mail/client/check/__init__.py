"""Find out which readings of the API's contract apply to a server."""

from airflow_provider_r7mail.client.check.report import Report
from airflow_provider_r7mail.client.check.survey import check_server

__all__ = ["Report", "check_server"]
