"""Show who wrote the most messages."""

import os

import duckdb

duckdb.sql(f"""
    SELECT from_address, count(*) AS messages
    FROM read_parquet(
        '{os.environ["AIRFLOW_HOME"]}/tables/messages/**/*.parquet',
        hive_types = {{'mailbox': VARCHAR}}
    )
    GROUP BY from_address ORDER BY messages DESC, from_address LIMIT 5
""").show()
