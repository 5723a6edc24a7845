"""The plain text of a message: all that its HTML shows, readable, and made in no time."""

from __future__ import annotations

import time

import pytest

from airflow_provider_r7mail.client.compose import compose_message, html_table
from airflow_provider_r7mail.client.plain_text import plain_text

PAGE = """<!DOCTYPE html><html><head><title>Hidden</title><style>p {color: red}</style></head>
<body><h1>Prices</h1><p>Dear
  Ann,<br>see <b>below</b> and in <a href="https://a.ru/?x=1&amp;y=2">the&nbsp;list</a>:</p>
<ul><li>one</li><li>two<ol><li>first<li>second</ol></li></ul><!-- hidden <p> -->
<script>if (a < b) { hidden("</p>"); }</script>
<table><tr><th>name</th><th>price</th></tr>
  <tr> <td>tea</td> <td>1 &lt; 2</td> </tr> <tr><td>milk</td><td></td><td>3</td></tr></table>
<PRE CLASS="code">def a:
    b

    c</PRE><img src="a.png" alt="A chart"><p>More: <a href='https://b.ru'>https://b.ru</a>,
<a href="mailto:a@b.ru">mail</a></body></html>"""
TEXT = """Prices

Dear Ann,
see below and in the list (https://a.ru/?x=1&y=2):

* one
* two
  1. first
  2. second

name | price
tea | 1 < 2
milk | | 3

def a:
    b

    c

A chart

More: https://b.ru, mail"""


PIECES = (
    *("<", "<p>", "<br ", "<br>", "<div>", "<ul><li>x", "<a href=https://a.ru>", "<p>x</p>"),
    *("<script ", "<script>", "</script", "<!--", "<!", "&#9", "&amp", " ", "<td>", "<img alt=x "),
    *("<pre>\n", "<pre> ", "</pre", '"', '<a "', "<a '\"", '<a href="https://', "href"),
)


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (PAGE, TEXT),
        ("", ""),
        ("https://a.ru/x", "https://a.ru/x"),
        ("plain &amp; simple", "plain & simple"),
        (
            "1 < 2, 3 > 2 & &#x44f; &unknown; <b>&#" + "9" * 5_000,
            "1 < 2, 3 > 2 & я &unknown; &#" + "9" * 5_000,
        ),
        ("a</p><p><br/><br><div><br></div></br>b", "a\n\nb"),
        ('<p title="a > b" class=x data-href="https://no.ru">it\'s</p>', "it's"),
        (
            "<a href=https://a.ru>one <a href=https://b.ru>two",
            "one (https://a.ru) two (https://b.ru)",
        ),
        ('<a href="https://a.ru"><img src="a.png"></a>', "(https://a.ru)"),
        ("</ul></pre><li>a</ol><li>b", "* a\n\n* b"),
        ("<ul><li><p>a</p></li><li><div>b</div></ul>c", "* a\n\n* b\n\nc"),
        ("Sum: <b>1</b>&nbsp;<i>000</i>.", "Sum: 1 000."),
        ("a<!b>c<?d?>e</ f>g<![endif]-->h", "acegh"),
        ("before<script>never closed <p>", "before"),
        ("before<!-- never closed <p>", "before"),
        ("<titles>shown</titles><p", "shown<p"),
    ],
)
def test_the_text_says_what_the_page_shows(page: str, text: str) -> None:
    """Readers of plain text see what the HTML shows, line by line, with the links' addresses."""
    assert plain_text(page) == text


def test_a_table_of_ours_keeps_its_rows() -> None:
    """A table of `html_table` has a line per row in plain text."""
    table = html_table([{"name": "<чай>", "price": 1}, {"name": None, "price": 2}])

    body = compose_message("a@b.ru", "s", f"<p>Today:</p>{table}").body or {}

    assert body["Body"] == "Today:\n\nname | price\n<чай> | 1\n| 2"


def test_a_report_of_many_paragraphs_takes_no_second() -> None:
    """100,000 paragraphs, and 3,000 tags within each other, take less than a second."""
    page = "<p>x</p>" * 100_000 + "<div>" * 3_000
    begun = time.thread_time()
    text = plain_text(page)

    assert time.thread_time() - begun < 1
    assert text == "\n\n".join("x" * 100_000)


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_no_page_takes_long(piece: str) -> None:
    """2 MB of any HTML, broken, nested or repeated, take a second or two, never minutes."""
    page = piece * (2_000_000 // len(piece))
    begun = time.thread_time()
    plain_text(page)

    assert time.thread_time() - begun < 5
