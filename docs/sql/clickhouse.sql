-- ClickHouse: views over the files in place, and tables that clickhouse_month.sql fills.
-- On a server with S3, use s3('https://bucket.s3.amazonaws.com/mail/...', Parquet), not file(...).
-- mailbox, folder and window are taken from the paths here, since use_hive_partitioning reads a login
-- like 007 as a number. A filter on them opens no other files.
-- While windows are compacted, a view may miss those that change between its two listings:
-- clickhouse_month.sql makes sure that none did.
CREATE DATABASE IF NOT EXISTS mail;

-- The folders of the windows to read. A window is complete if it has a manifest. A complete one with
-- _windows.jsonl is compacted: it replaces the windows that lie within it.
CREATE OR REPLACE VIEW mail.lake_windows AS
SELECT home, window
FROM (
    SELECT
        home,
        extract(home, '/window=([^/]*)/') AS window,
        splitByChar('_', replaceAll(replaceOne(window, 'open_', '_'), 'Z', '')) AS span,
        max(if(is_compacted, span[2], '')) OVER (
            PARTITION BY replaceRegexpOne(home, '[^/]*/$', '') ORDER BY span[1], span[2] DESC
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS covered_until
    FROM (
        SELECT
            replaceRegexpOne(_path, '[^/]*$', '') AS home,
            countIf(_file = '_manifest.json') > 0 AS is_complete,
            countIf(_file = '_windows.jsonl') > 0 AS is_compacted
        FROM file(
            '/data/mail/{messages,recipients,attachments}/*/*/*/_{manifest.json,windows.jsonl}', One
        )
        GROUP BY home
    )
    WHERE is_complete
)
WHERE span[2] > covered_until
SETTINGS use_hive_partitioning = 0;

CREATE OR REPLACE VIEW mail.lake_messages AS
SELECT
    * REPLACE (assumeNotNull(date) AS date),
    decodeURLComponent(extract(_path, '/mailbox=([^/]*)/')) AS mailbox,
    CAST(extract(_path, '/folder=([^/]*)/') AS Int64) AS folder,
    extract(_path, '/window=([^/]*)/') AS window
FROM file('/data/mail/messages/*/*/*/part-*.parquet', Parquet)
WHERE replaceRegexpOne(_path, '[^/]*$', '') IN (SELECT home FROM mail.lake_windows)
SETTINGS use_hive_partitioning = 0;

CREATE OR REPLACE VIEW mail.lake_recipients AS
SELECT
    *,
    decodeURLComponent(extract(_path, '/mailbox=([^/]*)/')) AS mailbox,
    CAST(extract(_path, '/folder=([^/]*)/') AS Int64) AS folder,
    extract(_path, '/window=([^/]*)/') AS window
FROM file('/data/mail/recipients/*/*/*/part-*.parquet', Parquet)
WHERE replaceRegexpOne(_path, '[^/]*$', '') IN (SELECT home FROM mail.lake_windows)
SETTINGS use_hive_partitioning = 0;

CREATE OR REPLACE VIEW mail.lake_attachments AS
SELECT
    *,
    decodeURLComponent(extract(_path, '/mailbox=([^/]*)/')) AS mailbox,
    CAST(extract(_path, '/folder=([^/]*)/') AS Int64) AS folder,
    extract(_path, '/window=([^/]*)/') AS window
FROM file('/data/mail/attachments/*/*/*/part-*.parquet', Parquet)
WHERE replaceRegexpOne(_path, '[^/]*$', '') IN (SELECT home FROM mail.lake_windows)
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
