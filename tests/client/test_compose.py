"""Composing a message: addresses in every form that users and templates give them."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_r7mail.client.compose import compose_message, parse_addresses
from airflow_provider_r7mail.exceptions import R7MailConfigError


def test_addresses_as_templates_render_them() -> None:
    """A list that a template rendered to text is still a list of addresses."""
    assert parse_addresses("['a@b.ru', 'c@d.ru']", "to") == ("a@b.ru", "c@d.ru")
    assert parse_addresses('["a@b.ru"]', "to") == ("a@b.ru",)
    assert parse_addresses(" a@b.ru, ", "to") == ("a@b.ru",)
    assert parse_addresses(None, "to") == ()


LETTER: dict[str, Any] = {"to": "a@b.ru", "subject": "Prices", "html_content": "<p>Hi</p>"}
FILE = {"Id": 1, "FileId": 2, "FileName": 2025, "Size": "3", "MimeType": "text/csv"}


def test_numbers_that_native_rendering_makes() -> None:
    """A subject, body or file name of digits only is sent as text, not as a number."""
    numbers = {"subject": 2025, "html_content": 42, "text_content": 4.5, "attachments": [FILE]}
    body = compose_message(**{**LETTER, **numbers}).body or {}

    assert [body[name] for name in ("Subject", "HtmlBody", "Body")] == ["2025", "42", "4.5"]
    assert body["Attachments"][0]["FileName"] == "2025"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"subject": "None"}, 'subject: got the text "None"'),
        ({"subject": None}, "subject: expected text, got None"),
        ({"html_content": ["a"]}, "html_content: expected text, got list"),
        ({"text_content": "None"}, 'text_content: got the text "None"'),
        ({"text_content": {}}, "text_content: expected text, got dict"),
        (
            {"attachments": {**FILE, "MimeType": False}},
            r"attachments\[0\] MimeType: expected text, got bool",
        ),
    ],
)
def test_what_is_not_text_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    """Anything else in place of a text is an error before anything is sent."""
    with pytest.raises(R7MailConfigError, match=f"^{message}"):
        compose_message(**{**LETTER, **wrong})


PAGE = """<!DOCTYPE html><html><head><title>Hidden</title><style>p {color: red}</style></head>
<body><h1>Prices</h1><p>Dear
  Ann,<br>see <b>below</b> and in <a href="https://a.ru/?x=1&amp;y=2">the list</a>:</p>
<ul><li>one</li><li>two</li></ul><!-- hidden -->
<table><tr><th>name</th><th>price</th></tr><tr><td>tea</td><td>1 &lt; 2</td></tr></table>
<pre>  a
    b</pre><p>More: <a href="https://b.ru">https://b.ru</a></body></html>"""
TEXT = """Prices

Dear Ann,
see below and in the list (https://a.ru/?x=1&y=2):

- one
- two

name price
tea 1 < 2

a
    b

More: https://b.ru"""


@pytest.mark.parametrize(
    ("page", "text"),
    [(PAGE, TEXT), ("https://a.ru/x", "https://a.ru/x"), ("plain &amp; simple", "plain & simple")],
)
def test_the_plain_text_of_html(page: str, text: str) -> None:
    """Who reads plain text sees what the HTML shows, line by line, with the links' addresses."""
    body = compose_message(**{**LETTER, "html_content": page}).body or {}

    assert body["Body"] == text
