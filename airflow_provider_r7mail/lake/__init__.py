"""Everything that is written: tables, files and windows. Knows neither Airflow nor HTTP."""
