"""Everything that is written: tables, files and windows. No Airflow, no HTTP."""
