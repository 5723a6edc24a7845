"""Loading real mail: mbox, Maildir and .eml, however malformed."""

from __future__ import annotations

import mailbox as mail_formats
import os
import time
from base64 import b64encode
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_r7mail.emulator import Attachment, Mailbox
from airflow_provider_r7mail.emulator.loading import parse, read

if TYPE_CHECKING:
    from pathlib import Path

DATE = "Date: Sun, 01 Jun 2025 13:00:00 +0300\n"


def loaded(path: Path) -> list[dict[str, Any]]:
    """Load a path, and return the messages in the inbox."""
    box = Mailbox()
    box.load(path)
    return box.messages(24)


def written(path: Path, *messages: str | bytes) -> Path:
    """Write messages as .eml files into a directory, and return it."""
    for number, message in enumerate(messages):
        content = message.encode() if isinstance(message, str) else message
        (path / f"{number}.eml").write_bytes(content)
    return path


def test_a_message_keeps_all_that_the_api_shows(tmp_path: Path) -> None:
    """Names, addresses, date, ids, both bodies and the attachments of an .eml are kept."""
    mail = EmailMessage()
    mail["From"] = "Воронов Иван <voronov@supplier.example>"
    mail["To"] = "a@devr7.ru, Бухгалтерия <b@devr7.ru>"
    mail["Cc"] = "c@devr7.ru"
    mail["Subject"] = "Прайс-лист на июнь: все позиции, которые есть на складе в Твери и Клину"
    mail["Date"] = datetime(2025, 6, 1, 10, tzinfo=UTC)
    mail["Message-ID"] = "<one@supplier.example>"
    mail["X-Priority"] = "1 (Highest)"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content("текст\n")
    mail.add_alternative("<p>текст</p>", subtype="html")
    data = bytes(range(256))
    mail.add_attachment(data, maintype="application", subtype="x-test", filename="Прайс №1.bin")
    (tmp_path / "a.eml").write_bytes(bytes(mail))
    box = Mailbox()

    assert box.load(tmp_path / "a.eml") == 1
    [message] = box.messages(24)
    assert message["From"] == {"Name": "Воронов Иван", "Address": "voronov@supplier.example"}
    assert (message["To"], message["Cc"]) == (["a@devr7.ru", "b@devr7.ru"], ["c@devr7.ru"])
    assert message["Subject"] == mail["Subject"]
    assert message["Date"] == "2025-06-01T10:00:00Z"
    assert message["MessageId"] == "one@supplier.example"
    assert (message["Body"], message["HtmlBody"]) == ("текст\n", "<p>текст</p>\n")
    assert (message["Important"], message["IsAutoSubmitted"]) == (True, True)
    assert message["Attachments"][0]["MimeType"] == "application/x-test"
    assert box.attachment(24, message["Id"], "Прайс №1.bin") == data


def test_mbox_maildir_and_folder_are_read(tmp_path: Path) -> None:
    """All messages of an mbox, a Maildir and a directory are loaded, sorted by date."""
    mbox = mail_formats.mbox(tmp_path / "mail.mbox")
    maildir = mail_formats.Maildir(tmp_path / "maildir")
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    for day in (3, 1, 2):
        content = f"Subject: {day}\nDate: Sun, 0{day} Jun 2025 13:00:00 +0300\n\nFrom me\n"
        mbox.add(content)
        maildir.add(content)
        (folder / f"{day}.eml").write_text(content)
    mbox.close()
    maildir.close()

    for name in ("mail.mbox", "maildir", "folder"):
        assert [item["Subject"] for item in loaded(tmp_path / name)] == ["1", "2", "3"]


def test_flags_say_what_was_read(tmp_path: Path) -> None:
    """The flags of a Maildir and the Status in an mbox set what is read."""
    maildir = mail_formats.Maildir(tmp_path / "maildir")
    for flags in ("S", "FS", ""):
        message = mail_formats.MaildirMessage(f"Subject: {flags}\n{DATE}\n")
        message.set_subdir("cur")
        message.set_flags(flags)
        maildir.add(message)
    maildir.close()
    (tmp_path / "mbox").write_text(
        f"From a@b Sun Jun  1 10:00:00 2025\nStatus: RO\n{DATE}\n1\n\n"
        f"From a@b Sun Jun  1 10:00:00 2025\nStatus: O\n{DATE}\n2\n"
    )

    flagged = {item["Subject"]: item for item in loaded(tmp_path / "maildir")}
    assert [flagged[flags]["WasRead"] for flags in ("S", "FS", "")] == [True, True, False]
    assert flagged["FS"]["Important"] is True
    assert [item["WasRead"] for item in loaded(tmp_path / "mbox")] == [True, False]


def test_a_message_without_a_date_gets_one(tmp_path: Path) -> None:
    """Without a valid Date, the date is that of Received, else of the mbox, else of the file."""
    received = "Received: from a by b; Sun, 01 Jun 2025 10:00:00 +0000\n"
    written(tmp_path, f"Date: soon\n{received}Subject: 1\n\n", "Subject: 2\n\n")
    moment = datetime(2025, 6, 2, tzinfo=UTC).timestamp()
    os.utime(tmp_path / "1.eml", (moment, moment))
    mbox = tmp_path / "mbox"
    mbox.write_text("From a@b Tue Jun  3 10:00:00 2025\nSubject: 3\n\ntext\n")

    assert [item["Date"] for item in loaded(tmp_path)] == [
        "2025-06-01T10:00:00Z",
        "2025-06-02T00:00:00Z",
    ]
    assert loaded(mbox)[0]["Date"] == "2025-06-03T10:00:00Z"


def test_files_are_kept_to_the_byte(tmp_path: Path) -> None:
    """Attachments keep their bytes in any encoding, as do attached messages."""
    crooked = b"a\r\nb\nc\r\xff\x00"
    content = (
        DATE.encode() + b"Content-Type: multipart/mixed; boundary=B\n\n--B\n"
        b"Content-Type: text/plain; charset=windows-1251\nContent-Transfer-Encoding: 8bit\n\n"
        + "привет".encode("cp1251")
        + b"\n--B\nContent-Type: application/pdf; name*=utf-8''%D1%81%D1%87%D1%91%D1%82%2F1.pdf\n"
        b"Content-Transfer-Encoding: base64\n\n"
        + b64encode(crooked)
        + b'\n--B\nContent-Type: text/csv\nContent-Disposition: attachment; filename="'
        b"=?utf-8?B?" + b64encode("остатки.csv".encode()) + b'?="\n\na;b\n'
        b"--B\nContent-Type: message/rfc822\n\nSubject:  odd   spacing\nTo: x@y\n\ninner\n"
        b"--B\nContent-Type: message/rfc822\nContent-Transfer-Encoding: base64\n"
        b'Content-Disposition: attachment; filename="coded.eml"\n\n'
        + b64encode(b"Subject: coded\n\ninner\n")
        + b"\n--B\nContent-Type: image/png\n\n\x89PNG\n"
        b"--B\nContent-Type: text/plain\n\nfooter\n--B--\n"
    )
    box = Mailbox()
    box.load(written(tmp_path, content))
    [message] = box.messages(24)

    assert message["Body"] == "привет\nfooter"
    files = {
        item["FileName"]: box.attachment(24, message["Id"], item["FileName"])
        for item in message["Attachments"]
    }
    assert files == {
        "счёт/1.pdf": crooked,
        "остатки.csv": b"a;b",
        "message-3.eml": b"Subject:  odd   spacing\nTo: x@y\n\ninner",
        "coded.eml": b"Subject: coded\n\ninner\n",
        "part-5.png": b"\x89PNG",
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"no header at all",
        b"Subject: =?utf-8?B?broken\nTo: <<>>, ,;:\nDate: Sun, 99 Foo 20250 99:99:99\n\nx",
        b"From: \xff\xfe <a@b\nTo: undisclosed-recipients:;\nSubject: \xd0\xff\n\n\xff\x00",
        b"Content-Type: text/plain; charset=klingon\n\n\xd0\xbf\xff",
        b'Content-Type: text/plain; charset="=?x?="\n\nx',
        b"Content-Type: multipart/mixed\n\nno boundary",
        b"Content-Type: multipart/mixed; boundary=B\n\n--B\n\nnever closed",
        b"Content-Type: ;;;\nContent-Disposition: ;;;\nContent-Transfer-Encoding: rot13\n\nx",
        b"Content-Transfer-Encoding: base64\nContent-Type: application/x\n\n!!!",
        b"Message-ID: <>\nIn-Reply-To: <\nReferences: <<a> b>\n\nx",
        b"From: a\n b\n c@d\nMessage-ID: [x]\nTo: " + b"a@b, " * 5_000 + b"\n\nx",
        b"Subject: a\nDate: Mon, 01 Jan 0001 00:00:00 +2400\n\nx",
    ],
)
def test_nothing_stops_a_message_from_loading(content: bytes, tmp_path: Path) -> None:
    """A message with malformed headers, charsets or parts is loaded anyway."""
    box = Mailbox()
    if content:
        box.load(written(tmp_path, content))
    else:
        box.deliver_message(parse(content))

    [message] = box.messages(24)
    assert isinstance(message["Body"], str)
    assert message["Date"].endswith("Z")


def test_unknown_charsets_are_read_somehow() -> None:
    """Text in an unknown charset is read as UTF-8, or else as Latin-1."""
    head = b"Content-Type: text/plain; charset=klingon\n\n"

    assert parse(head + "да".encode()).body == "да"
    assert parse(head + b"\xff\xfe").body == "ÿþ"


def test_a_page_without_text_has_its_words_listed() -> None:
    """An HTML-only message gets its text as the plain body."""
    page = "<style>p{}</style><p>Раз &amp; два</p><p>три</p>"
    message = parse(f"Content-Type: text/html; charset=utf-8\n\n{page}".encode())

    assert (message.html_body, message.body) == (page, "Раз & два\nтри")


def test_threads_are_found(tmp_path: Path) -> None:
    """Messages that refer to each other are one thread, even if one between them is missing."""
    written(
        tmp_path,
        f"Message-ID: <1@x>\nSubject: 1\n{DATE}\n",
        f"Message-ID: <2@x>\nIn-Reply-To: <1@x>\nSubject: 2\n{DATE.replace('13:', '14:')}\n",
        f"Message-ID: <4@x>\nReferences: <1@x> <3@x>\nSubject: 4\n{DATE.replace('13:', '15:')}\n",
        f"Message-ID: <9@x>\nSubject: alone\n{DATE.replace('13:', '16:')}\n",
    )
    one, two, four, alone = loaded(tmp_path)

    assert one["ThreadId"] == two["ThreadId"] == four["ThreadId"] is not None
    assert [item["ThreadCount"] for item in (one, two, four, alone)] == [3, 3, 3, 0]
    assert (two["ReplyToId"], two["MimeReplyToId"], one["HasChildren"]) == (one["Id"], "1@x", True)
    assert alone["ThreadId"] is None


ENVELOPE = "From a@b Sun Jun  1 10:00:00 2025\n"


@pytest.mark.parametrize(
    "line",
    [
        "From here on all is new.",
        "From here\nNote: all is new",
        "From ",
        "From Ivan on Sun Jun 1 10:00:00 2025: yes",
        "From 10:00 to 11:00 on 1 Jun 2025",
        "From the manual:\nSubject: a heading",
        "From a@b Sun Jun  1 10:00:00 2025\nwas the envelope",
        "From a@b Sun Jun  1 10:00:00 2025",
    ],
)
@pytest.mark.parametrize("before", ["text\n", "text\n\n", "\n\n"])
def test_a_line_that_begins_with_from_is_text(line: str, before: str, tmp_path: Path) -> None:
    """A line of a body that begins with "From " stays in it, and the files after it are whole."""
    body = f"{before}{line}\n\nend"
    mbox = tmp_path / "mbox"
    mbox.write_text(
        f"{ENVELOPE}{DATE}Content-Type: multipart/mixed; boundary=B\n\n--B\n\n{body}\n--B\n"
        f"Content-Type: text/csv; name=a.csv\n\n{body}\n--B--\n\n{ENVELOPE}{DATE}\nsecond\n"
    )
    box = Mailbox()

    assert box.load(mbox) == 2
    first, second = box.messages(24)
    assert (first["Body"], second["Body"]) == (body, "second\n")
    assert box.attachment(24, first["Id"], "a.csv") == body.encode()


@pytest.mark.parametrize(
    "envelope",
    [
        "From ",
        "From -",
        "From a@b",
        "From - Sun Jun  1 10:00:00 2025",
        "From MAILER-DAEMON Sun Jun 01 10:00:00 2025",
        "From 18@xxx Sun Jun 01 10:00:00 +0000 2025",
        "From a@b Sun Jun  1 10:00 2025",
        "From a@b Sun Jun  1 10:00:00 MSK 2025 +0300",
        "From a@b Sun, 1 Jun 2025 10:00:00 +0300",
        'From "a b"@c Sun Jun  1 10:00:00 2025 ',
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_messages_of_any_mbox_are_told_apart(envelope: str, newline: str, tmp_path: Path) -> None:
    """A From line of any program starts a message, with or without a date."""
    mbox = tmp_path / "mbox"
    text = "".join(f"{envelope}\nSubject: {number}\n{DATE}\ntext\n\n" for number in range(3))
    mbox.write_text(text, newline=newline)

    assert [item["Subject"] for item in loaded(mbox)] == ["0", "1", "2"]
    assert [item["Body"] for item in loaded(mbox)] == [f"text{newline}"] * 3


def test_quoted_from_lines_are_unquoted(tmp_path: Path) -> None:
    """The ">" that an mbox puts before "From " is removed, and only that."""
    mbox = tmp_path / "mbox"
    mbox.write_text(f"{ENVELOPE}{DATE}\n>From me\n>>From you\n> From him\n>Fromage\n")

    assert loaded(mbox)[0]["Body"] == "From me\n>From you\n> From him\n>Fromage\n"


def test_a_byte_order_mark_hides_no_mail(tmp_path: Path) -> None:
    """A byte order mark or blank lines before the first message lose neither it nor its header."""
    mbox = tmp_path / "mbox"
    mbox.write_text(f"\ufeff\n\n{ENVELOPE}Subject: 1\n{DATE}\n\n{ENVELOPE}Subject: 2\n{DATE}\n")
    written(tmp_path, f"\ufeffSubject: 3\n{DATE}\ntext")

    assert [item["Subject"] for item in loaded(mbox)] == ["1", "2"]
    assert [item["Subject"] for item in loaded(tmp_path)] == ["3"]


def test_a_file_that_begins_with_other_text_is_no_mbox(tmp_path: Path) -> None:
    """Text before the first message is an error: it could be a message that would be lost."""
    mbox = tmp_path / "mbox"
    mbox.write_text(f"Subject: 1\n{DATE}\ntext\n\n{ENVELOPE}Subject: 2\n{DATE}\n")

    with pytest.raises(ValueError, match="not an mbox"):
        read(mbox)


def test_a_folder_is_read_as_people_have_it(tmp_path: Path) -> None:
    """Files with .EML are mail; folders, dangling links and hidden files of macOS are not."""
    folder = tmp_path / "a.eml"
    folder.mkdir()
    for number, name in enumerate(["1.EML", "2.Eml", "a.eml/3.eml"], 1):
        (tmp_path / name).write_text(f"Subject: {number}\n{DATE}\n")
    (tmp_path / "._1.eml").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "dangling.eml").symlink_to(tmp_path / "nowhere.eml")
    (tmp_path / "notes.txt").write_text("Subject: not mail")
    maildir = tmp_path / "maildir"
    (maildir / "cur" / "inner").mkdir(parents=True)
    (maildir / "cur" / "1:2,S").write_text(f"Subject: 4\n{DATE}\n")
    (maildir / "cur" / ".DS_Store").write_bytes(b"\x00")
    (maildir / "cur" / "dangling").symlink_to(tmp_path / "nowhere.eml")

    assert sorted(item["Subject"] for item in loaded(tmp_path)) == ["1", "2", "3"]
    assert [item["Subject"] for item in loaded(maildir)] == ["4"]


HOSTILE = {
    "parentheses": b"(" * 243 + b")" * 243,
    "open parentheses": b"(" * 200_000,
    "commas": b"," * 100_000,
    "semicolons": b";" * 100_000,
    "open quotes": b'x; x="' + b";" * 100_000,
    "groups": b"a:" * 50_000,
    "angles": b"<" * 100_000,
    "brackets": b"[" * 100_000,
    "backslashes": b'\\"' * 50_000,
    "open encoded words": b"=?utf-8?q?x" * 10_000,
    "encoded words": b"=?utf-8?q?x?= " * 20_000,
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "name", ["To", "Subject", "Date", "References", "Content-Type", "Content-Disposition"]
)
def test_no_header_holds_up_loading(name: str, value: bytes) -> None:
    """A header made to recurse or to take minutes costs less than a second and its own text."""
    started = time.thread_time()
    message = parse(b"From: a@b\n" + name.encode() + b": " + value + b"\n\ntext")

    assert time.thread_time() - started < 1
    assert (message.sender, message.body) == ("a@b", "text")


def test_parts_nested_without_end_are_not_opened() -> None:
    """3,000 nested parts are loaded within a second; the innermost stay as they came."""
    head = b"Content-Type: multipart/mixed; boundary=B%d\n\n--B%d\n"
    nested = b"".join(head % (level, level) for level in range(3_000))
    started = time.thread_time()
    message = parse(b"Subject: deep\n" + nested + b"\ninnermost")

    assert time.thread_time() - started < 1
    assert message.subject == "deep"
    assert message.body is not None
    assert message.body.endswith("innermost")


@pytest.mark.parametrize("piece", ["<", "<br ", "<script ", "</style", "<!--", "&#9", "&amp"])
def test_no_page_holds_up_loading(piece: str) -> None:
    """2 MB of broken HTML are loaded within a second."""
    page = "&#" + "9" * 5_000 + piece * (2_000_000 // len(piece))
    started = time.thread_time()
    message = parse(f"Content-Type: text/html\n\n{page}".encode())

    assert time.thread_time() - started < 1
    assert message.html_body == page


def test_addresses_are_read_as_people_write_them() -> None:
    """Names and addresses are found in quotes, comments, groups, and raw UTF-8 (RFC 6532)."""
    message = parse(
        'From: Иван "Ваня" Воронов <иван@пример.рф>\n'
        'To: "Петров, П. \\"П\\"" <p@x>, (comment, too) q@x (Имя (и ещё)),\n'
        " team: r@x, =?utf-8?q?=D0=90,_?=\n =?utf-8?q?=D0=91?= <s@x>; t@[IPv6:::1], nobody at x\n"
        "Cc: Пётр <почта@дом.рф>\n\nx".encode()
    )

    assert (message.sender_name, message.sender) == ("Иван Ваня Воронов", "иван@пример.рф")
    assert message.to == ["p@x", "q@x", "r@x", "s@x", "t@[IPv6:::1]", "nobody at x"]
    assert message.cc == ["почта@дом.рф"]
    assert parse(b"From: =?utf-8?q?=D0=90,_?=\n =?utf-8?q?=D0=91?= <s@x>\n\n").sender_name == "А, Б"


def test_raw_text_of_any_kind_is_read_in_headers() -> None:
    """Raw UTF-8 is read in all headers, file names too; other bytes as Latin-1."""
    head = "Subject: Счёт\nContent-Type: application/pdf; name=счёт.pdf\n\nx".encode()

    assert (parse(head).subject, parse(head).attachments[0]) == (
        "Счёт",
        Attachment("счёт.pdf", b"x", "application/pdf"),
    )
    assert parse(b"Subject: caf\xe9\n\n").subject == "café"


@pytest.mark.parametrize(
    "group", ["Undisclosed recipients:;", "undisclosed-recipients: ;", "a:;, b: ;", '"a: b":;']
)
def test_an_empty_group_is_no_recipient(group: str) -> None:
    """`Undisclosed recipients:;` names no recipients."""
    message = parse(f"To: {group}\nCc: {group}\n\n".encode())

    assert (message.to, message.cc) == ([], None)


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Thu, 01 Jan 1925 03:00:00 +0300", "1925-01-01T00:00:00Z"),
        ("Wed, 31 Dec 1969 23:59:59 +0000", "1969-12-31T23:59:59Z"),
        ("Fri, 31 Dec 9999 23:59:59 +0000", "9999-12-31T23:59:59Z"),
    ],
)
def test_any_date_is_kept(date: str, expected: str) -> None:
    """Dates before 1970 and in the far future are kept."""
    box = Mailbox()
    box.deliver_message(parse(f"Date: {date}\n\n".encode()))

    assert box.messages(24)[0]["Date"] == expected


def test_what_is_no_mail_is_refused(tmp_path: Path) -> None:
    """A path that does not exist or has no mail is an error that says so."""
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no mail"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="not an mbox"):
        read(tmp_path / "notes.txt")
