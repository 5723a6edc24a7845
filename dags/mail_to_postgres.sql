-- The tables that mail_to_postgres fills. It loads the columns defined here: remove those you don't
-- need, or add others of the Parquet tables under the same names.
CREATE SCHEMA IF NOT EXISTS mail;

-- The loaded windows, and the extraction each comes from.
CREATE TABLE IF NOT EXISTS mail.windows (
    mailbox text,
    folder bigint,
    "window" text,
    run_id text NOT NULL,
    PRIMARY KEY (mailbox, folder, "window")
);

CREATE TABLE IF NOT EXISTS mail.messages (
    mailbox text,
    folder bigint,
    message_id bigint,
    "window" text NOT NULL,
    date timestamptz NOT NULL,
    from_name text,
    from_address text,
    to_addresses text[],
    cc_addresses text[],
    bcc_addresses text[],
    subject text,
    body text,
    html_body text,
    was_read boolean,
    was_sent boolean,
    was_replied boolean,
    important boolean,
    is_auto_submitted boolean,
    has_attachments boolean,
    labels bigint[],
    thread_id text,
    mime_message_id text,
    mime_reply_to_id text,
    size bigint,
    extracted_at timestamptz NOT NULL,
    gone_at timestamptz,
    PRIMARY KEY (mailbox, folder, message_id)
);
CREATE INDEX IF NOT EXISTS messages_date ON mail.messages (date);
CREATE INDEX IF NOT EXISTS messages_window ON mail.messages (mailbox, folder, "window");

CREATE TABLE IF NOT EXISTS mail.recipients (
    mailbox text,
    folder bigint,
    message_id bigint,
    kind text,
    position integer,
    address text,
    domain text,
    PRIMARY KEY (mailbox, folder, message_id, kind, position),
    FOREIGN KEY (mailbox, folder, message_id) REFERENCES mail.messages ON DELETE CASCADE
);

CREATE TABLE IF NOT EXISTS mail.attachments (
    mailbox text,
    folder bigint,
    message_id bigint,
    attachment_id bigint,
    file_name text,
    size bigint,
    mime_type text,
    uri text,
    sha256 text,
    status text NOT NULL,
    error text,
    listed_size bigint,
    FOREIGN KEY (mailbox, folder, message_id) REFERENCES mail.messages ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS attachments_message ON mail.attachments (mailbox, folder, message_id);
