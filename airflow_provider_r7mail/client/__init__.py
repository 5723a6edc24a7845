"""Client for the mail server's API: calls, sessions, reading, sending, checking. No Airflow."""

from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.session import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "ClientConfig"]
