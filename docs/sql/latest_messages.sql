-- Each message once, as it was last seen, wherever it lies: for mail that is moved between folders
-- which are both extracted, and for windows that overlap.
--
-- It needs a relation `messages` with the columns `mailbox` and `folder` of the path. In DuckDB:
--   CREATE VIEW messages AS SELECT * FROM
--   read_parquet('/data/mail/messages/**/*.parquet', hive_partitioning = true);
--
-- What it rests on: whether a message keeps the server's id when it is moved is not known, so its
-- MIME Message-ID tells that two rows are the same mail; the server's id does where there is none.
-- Two deliveries of a mail that lie in one folder are both seen, since one extraction saw both.
-- A copy in a second folder is not told from a move: only the one that was read later is seen.
-- `was_sent` keeps what one sent to oneself apart from what arrived.
CREATE VIEW latest_messages AS
SELECT *
FROM (
    SELECT
        m.*,
        max(m.extracted_at) OVER (
            PARTITION BY
                m.mailbox,
                coalesce(nullif(m.mime_message_id, ''), CAST(m.message_id AS VARCHAR)),
                coalesce(m.was_sent, false)
        ) AS last_seen_at
    FROM messages AS m
) AS seen
WHERE extracted_at = last_seen_at;
