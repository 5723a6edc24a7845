-- ClickHouse: views over the files in place, and tables that clickhouse_month.sql fills.
-- On a server with S3, use s3('https://bucket.s3.amazonaws.com/mail/...', Parquet), not file(...).
-- The views only include complete windows: those that have a manifest. mailbox, folder and window
-- come from the paths (use_hive_partitioning = 1, the default).
CREATE DATABASE IF NOT EXISTS mail;

CREATE OR REPLACE VIEW mail.lake_messages AS
SELECT
    * EXCEPT (mailbox, folder, window) REPLACE (assumeNotNull(date) AS date),
    decodeURLComponent(toString(mailbox)) AS mailbox,
    toInt64(folder) AS folder,
    toString(window) AS window
FROM file('/data/mail/messages/*/*/*/part-*.parquet', Parquet)
WHERE replaceRegexpOne(_path, '[^/]*$', '') IN (
    SELECT replaceRegexpOne(_path, '[^/]*$', '')
    FROM file('/data/mail/messages/*/*/*/_manifest.json', One)
);

CREATE OR REPLACE VIEW mail.lake_recipients AS
SELECT
    * EXCEPT (mailbox, folder, window),
    decodeURLComponent(toString(mailbox)) AS mailbox,
    toInt64(folder) AS folder,
    toString(window) AS window
FROM file('/data/mail/recipients/*/*/*/part-*.parquet', Parquet)
WHERE replaceRegexpOne(_path, '[^/]*$', '') IN (
    SELECT replaceRegexpOne(_path, '[^/]*$', '')
    FROM file('/data/mail/recipients/*/*/*/_manifest.json', One)
);

CREATE OR REPLACE VIEW mail.lake_attachments AS
SELECT
    * EXCEPT (mailbox, folder, window),
    decodeURLComponent(toString(mailbox)) AS mailbox,
    toInt64(folder) AS folder,
    toString(window) AS window
FROM file('/data/mail/attachments/*/*/*/part-*.parquet', Parquet)
WHERE replaceRegexpOne(_path, '[^/]*$', '') IN (
    SELECT replaceRegexpOne(_path, '[^/]*$', '')
    FROM file('/data/mail/attachments/*/*/*/_manifest.json', One)
);

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
