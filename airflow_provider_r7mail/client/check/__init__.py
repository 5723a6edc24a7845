"""Find out which readings of the contract a server has."""

from airflow_provider_r7mail.client.check.survey import Report, check_server

__all__ = ["Report", "check_server"]
