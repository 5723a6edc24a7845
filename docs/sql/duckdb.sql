-- Views over the files in place: complete windows only, each message once, also while windows are
-- compacted. The files are listed here and not by each query: run this file in every session
-- (duckdb -init duckdb.sql), and again to see new windows, or if a query says that a file is gone.
-- For S3: INSTALL httpfs; LOAD httpfs; and use paths like 's3://bucket/mail/tables/messages'.
-- mailbox, folder and "window" come from the paths. A filter on them reads no other files.

-- A window is complete if it has a manifest. A complete one with _windows.jsonl is compacted: it
-- replaces the windows that lie within it.
CREATE OR REPLACE MACRO complete_files(home) AS TABLE
WITH
listed AS (
    SELECT parse_path(file) AS path, parse_filename(file) AS name, file
    FROM glob(home || '/**')
    WHERE regexp_matches(file[len(home) + 1:], '^/mailbox=[^/]*/folder=[^/]*/window=[^/]*/[^/]+$')
),
windows AS (
    SELECT
        path[:-3] AS folder,
        replace(path[-2], '=open', '=').replace('Z', '').split('_') AS span,
        max(file) FILTER (name LIKE 'part-%.parquet') AS part,
        bool_or(name = '_windows.jsonl') AS is_compacted
    FROM listed
    GROUP BY ALL
    HAVING bool_or(name = '_manifest.json')
),
sweep AS (
    SELECT
        part,
        span[2] AS ends,
        max(CASE WHEN is_compacted THEN span[2] END) OVER (
            PARTITION BY folder ORDER BY span[1], span[2] DESC
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS covered_until
    FROM windows
)
SELECT list(part ORDER BY part) AS files FROM sweep WHERE ends > coalesce(covered_until, '');

-- Listed twice, since windows that are compacted during a listing may be missing from it.
CREATE OR REPLACE MACRO confirmed_files(home, known) AS TABLE
SELECT
    CASE
        WHEN files IS NOT DISTINCT FROM known THEN files
        ELSE error('Windows changed while they were listed. Run the file again.')
    END AS files
FROM complete_files(home);

SET VARIABLE messages = (FROM complete_files('/data/mail/messages'));
SET VARIABLE messages = (FROM confirmed_files('/data/mail/messages', getvariable('messages')));
CREATE OR REPLACE VIEW messages AS
FROM read_parquet(
    getvariable('messages'),
    union_by_name = true,
    hive_types = {'mailbox': VARCHAR, 'folder': BIGINT, 'window': VARCHAR}
);

SET VARIABLE recipients = (FROM complete_files('/data/mail/recipients'));
SET VARIABLE recipients = (
    FROM confirmed_files('/data/mail/recipients', getvariable('recipients'))
);
CREATE OR REPLACE VIEW recipients AS
FROM read_parquet(
    getvariable('recipients'),
    union_by_name = true,
    hive_types = {'mailbox': VARCHAR, 'folder': BIGINT, 'window': VARCHAR}
);

SET VARIABLE attachments = (FROM complete_files('/data/mail/attachments'));
SET VARIABLE attachments = (
    FROM confirmed_files('/data/mail/attachments', getvariable('attachments'))
);
CREATE OR REPLACE VIEW attachments AS
FROM read_parquet(
    getvariable('attachments'),
    union_by_name = true,
    hive_types = {'mailbox': VARCHAR, 'folder': BIGINT, 'window': VARCHAR}
);
