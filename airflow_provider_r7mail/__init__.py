"""Apache Airflow provider for the R7-Office mail server."""

from __future__ import annotations

__version__ = "0.1.0"
