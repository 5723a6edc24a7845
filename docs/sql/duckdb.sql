-- Views over the files in place, with complete windows only: those that have a manifest.
-- For S3: INSTALL httpfs; LOAD httpfs; and use paths like 's3://bucket/mail/tables/...'.
-- mailbox, folder and "window" come from the paths. A filter on them opens no other files.
CREATE OR REPLACE VIEW messages AS
SELECT * EXCLUDE (filename)
FROM read_parquet(
    '/data/mail/messages/*/*/*/part-*.parquet',
    filename = true,
    union_by_name = true,
    hive_types = {'mailbox': VARCHAR, 'folder': BIGINT, 'window': VARCHAR}
)
WHERE parse_dirpath(filename) IN (
    SELECT parse_dirpath(file) FROM glob('/data/mail/messages/*/*/*/_manifest.json')
);

CREATE OR REPLACE VIEW recipients AS
SELECT * EXCLUDE (filename)
FROM read_parquet(
    '/data/mail/recipients/*/*/*/part-*.parquet',
    filename = true,
    union_by_name = true,
    hive_types = {'mailbox': VARCHAR, 'folder': BIGINT, 'window': VARCHAR}
)
WHERE parse_dirpath(filename) IN (
    SELECT parse_dirpath(file) FROM glob('/data/mail/recipients/*/*/*/_manifest.json')
);

CREATE OR REPLACE VIEW attachments AS
SELECT * EXCLUDE (filename)
FROM read_parquet(
    '/data/mail/attachments/*/*/*/part-*.parquet',
    filename = true,
    union_by_name = true,
    hive_types = {'mailbox': VARCHAR, 'folder': BIGINT, 'window': VARCHAR}
)
WHERE parse_dirpath(filename) IN (
    SELECT parse_dirpath(file) FROM glob('/data/mail/attachments/*/*/*/_manifest.json')
);
