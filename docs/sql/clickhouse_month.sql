-- Load a month of windows into ClickHouse, each table in one step: readers see the month as it was
-- before, or as it is now. Run it again as often as you like; mail that is gone goes.
--   clickhouse-client --param_month=202511 --queries-file clickhouse_month.sql
-- A month without any message is refused, as it would be by a wrong path; DROP PARTITION empties it.
-- A month may well have no attachments: ClickHouse 26 refuses that too, unless told to be as before.

CREATE OR REPLACE TABLE mail.staged_messages AS mail.messages;
INSERT INTO mail.staged_messages
SELECT * FROM mail.lake_messages WHERE startsWith(window, {month:String});
ALTER TABLE mail.messages REPLACE PARTITION {month:String} FROM mail.staged_messages;
DROP TABLE mail.staged_messages;

CREATE OR REPLACE TABLE mail.staged_recipients AS mail.recipients;
INSERT INTO mail.staged_recipients
SELECT * FROM mail.lake_recipients WHERE startsWith(window, {month:String});
ALTER TABLE mail.recipients REPLACE PARTITION {month:String} FROM mail.staged_recipients
SETTINGS compatibility = '25.8';
DROP TABLE mail.staged_recipients;

CREATE OR REPLACE TABLE mail.staged_attachments AS mail.attachments;
INSERT INTO mail.staged_attachments
SELECT * FROM mail.lake_attachments WHERE startsWith(window, {month:String});
ALTER TABLE mail.attachments REPLACE PARTITION {month:String} FROM mail.staged_attachments
SETTINGS compatibility = '25.8';
DROP TABLE mail.staged_attachments;
