"""The plain text that goes along with an HTML message."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_r7mail.plain_text import plain_text


def test_a_report_reads_well() -> None:
    """Who reads mail as text sees a report's headings, rows, items and links, each in its place."""
    html = """
        <html><head><title>t</title><style>p { color: red }</style></head>
        <body>
          <h1>Прайс&nbsp;на <i>1 июня</i></h1>
          <p>Hello,<br>see   <b>below</b>: 2 &lt; 3.</p>
          <table border=1>
            <thead><tr><th>name</th><th>price</th></tr></thead>
            <tbody><tr><td>nut</td><td>1.50</td></tr><tr><td>bolt</td><td>2</td></tr></tbody>
          </table>
          <ul><li><a href="https://example.org/a?b=1&amp;c=2">the file</a>, new
          <li><a href="https://example.org">https://example.org</a></li></ul>
          <img src="cid:1" alt="A chart"> <script>alert(1)</script>
          <pre>
        a   b
          c</pre>
        </body></html>
    """

    assert plain_text(textwrap.dedent(html)) == textwrap.dedent("""\
        Прайс на 1 июня

        Hello,
        see below: 2 < 3.

        name | price
        nut | 1.50
        bolt | 2

        - the file (https://example.org/a?b=1&c=2), new
        - https://example.org

        A chart

        a   b
          c""")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("just text", "just text"),
        ("a<br><br>b", "a\n\nb"),
        ("<div>a</div><div>b</div>", "a\nb"),
        ("<b>a</b>b <i> c</i>", "ab c"),
        ("</a></style></pre>a", "a"),
        ("<a href='javascript:x'>a</a>", "a"),
        ("<p>a<p>b", "a\n\nb"),
        ("a &unknown; & b <", "a &unknown; & b <"),
    ],
)
def test_fragments(html: str, text: str) -> None:
    """Fragments, and HTML that is not quite right, come out as a browser shows them."""
    assert plain_text(html) == text


@given(st.text(alphabet=st.sampled_from("a <>/!-&;\"'=\n") | st.characters(codec="utf-8")))
def test_any_text(html: str) -> None:
    """Whatever a template renders, there is some text, and no error."""
    assert isinstance(plain_text(html), str)
