-- Each message once, as last seen, in whichever folder: for mail that is moved between extracted
-- folders, and for overlapping windows.
--
-- It needs a relation `messages` with the columns `mailbox` and `folder` from the path, such as the
-- one of duckdb.sql, mail.lake_messages of clickhouse.sql, or what mail_to_postgres loads.
--
-- In a folder, the server id identifies a message. Different mail may have the same MIME
-- Message-ID: scanners and alarm systems do that.
-- It is unknown whether a message keeps its server id when it is moved. So rows of different
-- folders are the same message if they agree in sender, date, subject and MIME Message-ID; without
-- a MIME id, in the server id.
-- A copy in a second folder can't be told from a move: only the one extracted later is kept. Each
-- row replaces one row of another folder, since a folder may have several copies.
-- A row with `gone_at`, of mail that has left its folder, is shown only if no other folder has the
-- message: WHERE gone_at IS NULL leaves such mail out.
-- `was_sent` keeps mail sent to oneself apart from the copy that arrived.
CREATE VIEW latest_messages AS
WITH
rows_by_age AS (
    SELECT
        m.*,
        coalesce(nullif(m.mime_message_id, ''), CAST(m.message_id AS VARCHAR)) AS mail_id,
        row_number() OVER (
            PARTITION BY m.mailbox, m.folder, m.message_id
            ORDER BY coalesce(m.gone_at, m.extracted_at) DESC
        ) AS age
    FROM messages AS m
),
copies AS (
    SELECT
        r.*,
        row_number() OVER (
            PARTITION BY
                r.mailbox, r.mail_id, r.from_address, r.date, r.subject,
                coalesce(r.was_sent, false), r.folder
            ORDER BY r.message_id
        ) AS copy_number
    FROM rows_by_age AS r
    WHERE r.age = 1
),
places AS (
    SELECT
        c.*,
        row_number() OVER (
            PARTITION BY
                c.mailbox, c.mail_id, c.from_address, c.date, c.subject,
                coalesce(c.was_sent, false), c.copy_number
            ORDER BY
                CASE WHEN c.gone_at IS NULL THEN 0 ELSE 1 END,
                c.extracted_at DESC, c.folder
        ) AS place
    FROM copies AS c
)
SELECT * FROM places WHERE place = 1;
