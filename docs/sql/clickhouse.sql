-- ClickHouse: views over the files in place, and tables that clickhouse_month.sql fills.
-- On a server with S3, use s3('https://bucket.s3.amazonaws.com/mail/...', Parquet), not file(...).
-- The views only include complete windows: those that have a manifest. mailbox, folder and window
-- are taken from the paths here, since use_hive_partitioning reads a login like 007 as a number. A
-- filter on them opens no other files.
CREATE DATABASE IF NOT EXISTS mail;

CREATE OR REPLACE VIEW mail.lake_messages AS
SELECT
    * REPLACE (assumeNotNull(date) AS date),
    decodeURLComponent(extract(_path, '/mailbox=([^/]*)/')) AS mailbox,
    CAST(extract(_path, '/folder=([^/]*)/') AS Int64) AS folder,
    extract(_path, '/window=([^/]*)/') AS window
FROM file('/data/mail/messages/*/*/*/part-*.parquet', Parquet)
WHERE replaceRegexpOne(_path, '[^/]*$', '') IN (
    SELECT replaceRegexpOne(_path, '[^/]*$', '')
    FROM file('/data/mail/messages/*/*/*/_manifest.json', One)
)
SETTINGS use_hive_partitioning = 0;

CREATE OR REPLACE VIEW mail.lake_recipients AS
SELECT
    *,
    decodeURLComponent(extract(_path, '/mailbox=([^/]*)/')) AS mailbox,
    CAST(extract(_path, '/folder=([^/]*)/') AS Int64) AS folder,
    extract(_path, '/window=([^/]*)/') AS window
FROM file('/data/mail/recipients/*/*/*/part-*.parquet', Parquet)
WHERE replaceRegexpOne(_path, '[^/]*$', '') IN (
    SELECT replaceRegexpOne(_path, '[^/]*$', '')
    FROM file('/data/mail/recipients/*/*/*/_manifest.json', One)
)
SETTINGS use_hive_partitioning = 0;

CREATE OR REPLACE VIEW mail.lake_attachments AS
SELECT
    *,
    decodeURLComponent(extract(_path, '/mailbox=([^/]*)/')) AS mailbox,
    CAST(extract(_path, '/folder=([^/]*)/') AS Int64) AS folder,
    extract(_path, '/window=([^/]*)/') AS window
FROM file('/data/mail/attachments/*/*/*/part-*.parquet', Parquet)
WHERE replaceRegexpOne(_path, '[^/]*$', '') IN (
    SELECT replaceRegexpOne(_path, '[^/]*$', '')
    FROM file('/data/mail/attachments/*/*/*/_manifest.json', One)
)
SETTINGS use_hive_partitioning = 0;

CREATE TABLE IF NOT EXISTS mail.messages
ENGINE = MergeTree
PARTITION BY substring(window, 1, 6)
ORDER BY (mailbox, folder, date, message_id)
EMPTY AS SELECT * FROM mail.lake_messages;

CREATE TABLE IF NOT EXISTS mail.recipients
ENGINE = MergeTree
PARTITION BY substring(window, 1, 6)
ORDER BY (mailbox, folder, message_id, kind, position)
EMPTY AS SELECT * FROM mail.lake_recipients;

CREATE TABLE IF NOT EXISTS mail.attachments
ENGINE = MergeTree
PARTITION BY substring(window, 1, 6)
ORDER BY (mailbox, folder, message_id)
EMPTY AS SELECT * FROM mail.lake_attachments;
