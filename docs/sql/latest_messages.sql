-- Each message once, as last seen, in whichever folder: for mail that is moved between extracted
-- folders, and for overlapping windows.
--
-- It needs a relation `messages` with the columns `mailbox` and `folder` from the path. In DuckDB:
--   CREATE VIEW messages AS SELECT * FROM
--   read_parquet('/data/mail/messages/**/*.parquet', hive_partitioning = true);
--
-- Assumptions: it is unknown whether a message keeps its server id when it is moved, so rows with
-- the same MIME Message-ID are the same message; without one, the server id is used.
-- Two copies of a message in one folder are both kept, since the same extraction saw both.
-- A copy in a second folder can't be told from a move: only the one extracted later is kept.
-- `was_sent` keeps mail sent to oneself apart from the copy that arrived.
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
