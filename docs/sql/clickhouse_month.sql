-- Load a month of windows into ClickHouse, replacing each table's partition atomically: readers see
-- the month as it was before or as it is now. It is safe to repeat; deleted mail disappears.
--   clickhouse-client --param_month=202511 --queries-file clickhouse_month.sql
-- ClickHouse rejects a month without messages, which could be a wrong path; to empty a month, use
-- DROP PARTITION. A month without attachments is normal, but ClickHouse 26 rejects that too unless
-- it is set to behave like earlier versions.

CREATE OR REPLACE TABLE mail.staged_windows ENGINE = Memory AS
SELECT home FROM mail.lake_windows WHERE startsWith(window, {month:String});

CREATE OR REPLACE TABLE mail.staged_messages AS mail.messages;
INSERT INTO mail.staged_messages
SELECT * FROM mail.lake_messages WHERE startsWith(window, {month:String});

CREATE OR REPLACE TABLE mail.staged_recipients AS mail.recipients;
INSERT INTO mail.staged_recipients
SELECT * FROM mail.lake_recipients WHERE startsWith(window, {month:String});

CREATE OR REPLACE TABLE mail.staged_attachments AS mail.attachments;
INSERT INTO mail.staged_attachments
SELECT * FROM mail.lake_attachments WHERE startsWith(window, {month:String});

SELECT throwIf(before != after, 'Windows changed while they were read. Run the file again.')
FROM (
    SELECT
        (SELECT arraySort(groupArray(home)) FROM mail.staged_windows) AS before,
        (
            SELECT arraySort(groupArray(home)) FROM mail.lake_windows
            WHERE startsWith(window, {month:String})
        ) AS after
);

ALTER TABLE mail.messages REPLACE PARTITION {month:String} FROM mail.staged_messages;
ALTER TABLE mail.recipients REPLACE PARTITION {month:String} FROM mail.staged_recipients
SETTINGS compatibility = '25.8';
ALTER TABLE mail.attachments REPLACE PARTITION {month:String} FROM mail.staged_attachments
SETTINGS compatibility = '25.8';

DROP TABLE mail.staged_windows;
DROP TABLE mail.staged_messages;
DROP TABLE mail.staged_recipients;
DROP TABLE mail.staged_attachments;
