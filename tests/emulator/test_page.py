"""The emulator's web page: what it shows, and that hostile mail and web sites can't abuse it."""

from __future__ import annotations

import html
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_provider_r7mail.emulator import MISSING, Attachment, Emulator, Fault, Mailbox
from airflow_provider_r7mail.emulator.page import CALLS, FAULTS, clean
from tests.browser import chromium
from tests.emulator.calls import LOGIN, MAIL, listing, log_in

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

MESSAGES = f"{MAIL}/Messages"
LISTING = listing()
PHONE: ViewportSize = {"width": 360, "height": 740}


@pytest.fixture
def http(server: Emulator) -> Iterator[httpx.Client]:
    """A client of the emulator."""
    with httpx.Client(base_url=server.url, timeout=10, verify=False) as client:
        yield client


# What it shows


def test_the_root_shows_the_inbox_and_says_what_it_is(server: Emulator, http: httpx.Client) -> None:
    """The root shows the inbox, newest first, all folders with their counts, and a warning."""
    for number in range(120):
        server.mailbox.deliver(subject=f"n{number:03d}.", date=f"2025-06-01T10:00:00.{number:03d}Z")

    first = http.get("/").text
    last = http.get("/?page=3").text

    assert re.findall(r"n(\d{3})\.", first) == [f"{number:03d}" for number in range(119, 69, -1)]
    assert re.findall(r"n(\d{3})\.", last) == [f"{number:03d}" for number in range(19, -1, -1)]
    assert "Page 3 of 3" in last
    assert "An emulator" in first
    assert "No mail leaves it" in first
    for name in server.mailbox.folders.values():
        assert f"<bdi>{name}</bdi>" in first


@pytest.mark.parametrize("page", ["0", "-1", "99", "x", "٣", "9" * 5000])
def test_any_page_number_is_answered(page: str, http: httpx.Client) -> None:
    """A page number out of range shows the nearest page."""
    assert http.get("/", params={"page": page}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/folders/999", "/messages/999", "/messages/999/html", "/messages/999/files/0", "/x"]
)
def test_what_is_not_there_is_404(path: str, http: httpx.Client) -> None:
    """An unknown folder, message, file or page is a 404."""
    assert http.get(path).status_code == 404


def test_a_message_is_shown_whole(server: Emulator, http: httpx.Client) -> None:
    """A message's page shows its headers, text, JSON and files, without marking it as read."""
    number = server.mailbox.deliver(
        subject="Счёт",
        body="Текст письма",
        sender="a@b.ru",
        sender_name="Анна",
        cc=["c@d.ru"],
        attachments=[("счёт.pdf", b"%PDF", "application/pdf")],
    )

    page = html.unescape(http.get(f"/messages/{number}").text)

    for text in (
        "Счёт",
        "Текст письма",
        "Анна",
        "c@d.ru",
        "счёт.pdf",
        "unread",
        '"WasRead": false',
    ):
        assert text in page
    assert server.mailbox.get(number)["WasRead"] is False
    assert "<p>Текст письма</p>" in http.get(f"/messages/{number}/html").text
    plain = server.mailbox.deliver(body="Plain", html_body="")
    assert "<p>Plain</p>" in http.get(f"/messages/{plain}/html").text
    assert http.get(f"/messages/{number}/files/0").content == b"%PDF"
    assert http.get(f"/messages/{number}/files/1").status_code == 404


def test_what_was_sent_is_shown(server: Emulator, http: httpx.Client) -> None:
    """Sent messages are listed with all recipients, even if they are not in any folder."""
    sent = [
        server.mailbox.send(
            {
                "Subject": f"Отчёт {number}",
                "Body": "b",
                "HtmlBody": "h",
                "To": ["a@b.ru"],
                "Bcc": ["hidden@b.ru"],
                "Id": 0,
            }
        )
        for number in range(2)
    ]
    server.mailbox.delete(25, [sent[0]["Id"]])
    server.mailbox.delete(27, [sent[0]["Id"]])

    page = http.get("/sent").text

    assert page.index("Отчёт 1") < page.index("Отчёт 0")
    assert "hidden@b.ru" in page
    assert f'href="/messages/{sent[1]["Id"]}"' in page
    assert f"Message {sent[0]['Id']}, not in any folder" in page


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(("Subject", "Body", "HtmlBody", "From", "To", "Date", "Attachments")),
        dict.fromkeys(
            ("Subject", "Body", "HtmlBody", "From", "To", "Date", "FolderId", "WasRead"), MISSING
        ),
        {"Subject": 5, "Body": ["x"], "HtmlBody": {}, "From": "x", "To": {"a": 1}, "Date": 7},
        {"Subject": "\ud83d", "Body": "\x00\ud83d", "HtmlBody": "<b>\ud83d\x00</b>"},
    ],
    ids=["null", "missing", "wrong types", "lone surrogates"],
)
def test_odd_messages_are_shown(
    fields: dict[str, Any], server: Emulator, http: httpx.Client
) -> None:
    """A message whose fields are null, missing or of a wrong type breaks no page (R20, R21)."""
    number = server.mailbox.deliver(
        fields=fields, attachments=[("\ud83d\x00\r\n.txt", b"x", "text/plain")]
    )

    paths = ["/", f"/messages/{number}", f"/messages/{number}/html", f"/messages/{number}/files/0"]

    assert [http.get(path).status_code for path in paths] == [200] * 4


# Calls and faults


def test_calls_are_listed_without_secrets(server: Emulator, http: httpx.Client) -> None:
    """The last calls are shown with status and response, without passwords and tokens."""
    log_in(http)
    token = http.headers["Authorization"]
    http.post("/api/v2/auth/login", json={"Login": "user_test", "Password": "TestPassword"})
    http.post(f"{LOGIN}?Password=TestPassword", json={"Login": "x", "Password": "Another0ne"})
    http.post(MESSAGES, json=LISTING)
    server.faults.append(Fault(status=503, body="busy"))
    http.post(MESSAGES, json=LISTING)
    server.expire_tokens()
    http.post(MESSAGES, json=LISTING)

    pages = [html.unescape(http.get(path).text) for path in ("/", "/calls")]

    for page in pages:
        assert re.findall(r'class="status \w+">(\S+)<', page) == [
            *("401", "503", "200", "401", "405", "200")
        ]
        assert '"Items":[]' in page
        assert '"folderId":24' in page
        assert "unknown token" in page
        assert '"AuthToken":"***"' in page
        for secret in (token, "TestPassword", "Another0ne"):
            assert secret not in page


@pytest.mark.slow
def test_the_list_of_calls_is_bounded(server: Emulator, http: httpx.Client) -> None:
    """However many and large the calls are, the page shows the last 200, abridged."""
    log_in(http)
    server.mailbox.deliver(body="x" * 500_000)
    for _ in range(250):
        http.post(MESSAGES, json=LISTING)

    page = http.get("/calls").text

    assert page.count('class="status') == 200
    assert len(page) < 1_500_000
    assert "500 KB" in page or "1.0 MB" in page, "the size is the whole answer's"


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_button_makes_its_fault(
    fault: str, server: Emulator, http: httpx.Client
) -> None:
    """Each button adds its fault for the chosen calls and number of times, and lists it."""
    form = {"fault": fault, "call": "Send", "times": "3"}

    answer = http.post("/faults", data=form, follow_redirects=True)

    [made] = server.faults
    assert (made.path, made.times) == ("Send", 3)
    assert f"<li>Send: {html.escape(FAULTS[fault][0])}</li>" in answer.text
    http.post("/faults/clear")
    assert len(server.faults) == 0


def test_other_faults_are_refused(server: Emulator, http: httpx.Client) -> None:
    """The form accepts only the values it offers."""
    for form in ({}, {"fault": "x"}, {"fault": "error", "call": "x"}, {"fault": "error"}):
        expected = 303 if form == {"fault": "error"} else 400
        assert http.post("/faults", data=form).status_code == expected
    [made] = server.faults
    assert (made.path, made.times) == (None, None)


def test_the_call_names_are_the_apis(http: httpx.Client) -> None:
    """The form offers exactly the calls of the API."""
    elsewhere = {"Login": LOGIN, "Upload": "/api/v1/Documents/Upload"}
    for name in CALLS:
        path = elsewhere.get(name, f"/api/v1/email/{name}")
        assert http.get(path).status_code in {401, 405}


# Hostile mail


NASTY = "\"'><script>alert(1)</script>{{77777*77777}}<img src=x onerror=alert(1)>\u202e"


def test_hostile_texts_are_only_text(server: Emulator, http: httpx.Client) -> None:
    """Subjects, names, addresses, file names and queries are escaped on every page."""
    mailbox = server.mailbox
    mailbox.add_folder(66, NASTY)
    mailbox.address = NASTY
    for folder in (24, 66):
        number = mailbox.deliver(
            folder=folder,
            subject=NASTY,
            body=NASTY,
            sender=NASTY,
            sender_name=NASTY,
            to=[NASTY],
            date=NASTY,
            attachments=[(NASTY, b"x", NASTY)],
        )
    mailbox.send({"Subject": NASTY, "Body": NASTY, "HtmlBody": "", "To": [NASTY], "Id": 0})
    log_in(http)
    http.post(MESSAGES, json={**LISTING, "SearchContext": {"Subject": NASTY}})
    http.get("/api/v1/email/Attachments", params={"folderId": 24, "Id": 1, "FileName": NASTY})
    http.post(f"/api/{NASTY}")

    for path in ("/", "/folders/66", f"/messages/{number}", "/sent", "/calls"):
        page = http.get(path).text
        assert "<script>alert" not in page
        assert "<img" not in page
        assert "6049261729" not in page
        assert html.escape("<script>alert", quote=False) in page


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        ('<p style="color:red">x</p>', '<p style="color:red">x</p>'),
        ("a<script>alert(1)</script>b", "ab"),
        ('<link rel="preconnect" href="http://x.example">a', "a"),
        ('<meta http-equiv="refresh" content="0;url=http://x.example">a', "a"),
        ('<base href="http://x.example">a', "a"),
        ('<a href="http://x.example" onclick="x()" ping="http://x.example">a</a>', "<a>a</a>"),
        ('<a href="/reset">a</a>', "<a>a</a>"),
        ('<img src="http://x.example/p.gif" alt="p">', '<img alt="p">'),
        ('<img src="data:text/html,x">', "<img>"),
        ('<img src="data:image/gif;base64,R0lG">', '<img src="data:image/gif;base64,R0lG">'),
        ('<form action="/reset"><button>a</button></form>', "a"),
        ('<iframe src="/"></iframe><object data="/"></object><embed src="/">', ""),
        ("<svg><image href='http://x.example'/></svg>a", "a"),
    ],
)
def test_a_messages_html_is_cleaned(dirty: str, cleaned: str) -> None:
    """Formatting is kept; scripts, external content and links are removed."""
    assert clean(dirty) == cleaned


def test_the_frames_policy_is_strict(server: Emulator, http: httpx.Client) -> None:
    """A message's HTML can't run or load anything, even when it is opened on its own."""
    number = server.mailbox.deliver(html_body="<p>x</p>")

    policy = http.get(f"/messages/{number}/html").headers["content-security-policy"]

    directives = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    assert directives["sandbox"] == ""
    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data:"
    assert "script-src" not in directives
    assert f'<iframe sandbox src="/messages/{number}/html"' in http.get(f"/messages/{number}").text


@pytest.mark.parametrize(
    "name", ["a.html", "../../etc/passwd", 'a"; filename=b.exe', "a\r\nSet-Cookie: x", "ф" * 300]
)
def test_files_are_only_downloaded(name: str, server: Emulator, http: httpx.Client) -> None:
    """A file is never displayed or run, whatever its name and type."""
    file = Attachment(name, b"<script>alert(1)</script>", "text/html")
    number = server.mailbox.deliver(attachments=[file])

    answer = http.get(f"/messages/{number}/files/0")

    assert answer.content == file.data
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    disposition = answer.headers["content-disposition"]
    assert re.fullmatch(r"attachment; filename\*=UTF-8''[\w.%~-]+", disposition)
    assert "set-cookie" not in answer.headers


# Hostile web sites


def page_requests(number: int) -> list[tuple[str, str]]:
    """Return requests to the page and the control plane that read or change something."""
    return [
        ("GET", "/"),
        ("GET", f"/messages/{number}/html"),
        ("GET", "/_emulator/messages?folder=24"),
        ("GET", "/_emulator/requests"),
        ("POST", "/reset"),
        ("POST", "/faults"),
        ("POST", "/_emulator/reset"),
        ("POST", "/_emulator/faults"),
        ("DELETE", "/_emulator/faults"),
    ]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8025", "127.0.0.1.evil.example", ""]
)
def test_a_name_that_leads_here_is_not_served(
    host: str, server: Emulator, http: httpx.Client
) -> None:
    """A web site whose name resolves to 127.0.0.1 (DNS rebinding) can't read or change anything."""
    number = server.mailbox.deliver()

    for method, path in page_requests(number):
        answer = http.request(method, path, headers={"Host": host}, content="{}")
        assert answer.status_code == 403
        assert "127.0.0.1" in answer.text
    login = {"Login": "user_test", "Password": "TestPassword"}
    forged = {"Host": host, "Origin": f"http://{host}"}
    assert http.post(LOGIN, json=login, headers=forged).status_code == 403
    assert server.logins == 0
    assert len(server.faults) == 0


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null"])
def test_another_sites_page_presses_nothing(
    origin: str, server: Emulator, http: httpx.Client
) -> None:
    """Requests from a page of another web site, port or sandbox are rejected."""
    server.faults.append(Fault())
    for method, path in [*page_requests(1), ("POST", LOGIN)]:
        answer = http.request(method, path, headers={"Origin": origin}, content="{}")
        assert answer.status_code == 403
    assert len(server.faults) == 1


def test_programs_and_its_own_page_are_served(server: Emulator, http: httpx.Client) -> None:
    """The page responds on IP addresses and localhost, the API on any host name."""
    for host in (f"localhost:{server.port}", "127.0.0.1", f"[::1]:{server.port}", "10.0.0.5:80"):
        assert http.get("/", headers={"Host": host}).status_code == 200
        origin = {"Host": host, "Origin": f"http://{host}"}
        assert http.post("/faults/clear", headers=origin).status_code == 303
    login = {"Login": "user_test", "Password": "TestPassword"}
    assert http.post(LOGIN, json=login, headers={"Host": "mail:8025"}).status_code == 200


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, with evil.example resolving to this machine."""
    with chromium("--host-resolver-rules=MAP evil.example 127.0.0.1") as running:
        yield running


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A new tab, which must log no errors."""
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    yield page
    page.close()
    assert complaints == []


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[bytes]]]:
    """Another server: its URL, and everything it received, including bare connections."""
    reached: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with closing(connection):
                connection.settimeout(0.2)
                try:
                    reached.append(connection.recv(1000))
                except OSError:
                    reached.append(b"")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", reached
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def hostile(url: str) -> str:
    """Return HTML that tries everything to run a script or to reach a URL."""
    return f"""<html><head>
<link rel=preconnect href="{url}"><link rel=dns-prefetch href="{url}">
<link rel=prefetch href="{url}/1"><link rel=stylesheet href="{url}/2"><link rel=icon href="{url}/3">
<link rel=preload as=image href="{url}/4"><link rel=modulepreload href="{url}/5">
<meta http-equiv=refresh content="0;url={url}/6"><base href="{url}/">
<style>@import "{url}/7"; @font-face {{ font-family: x; src: url({url}/8) }} p {{ font-family: x }}
</style></head><body background="{url}/9" onload="top.document.title = 'owned'">
<p style="background: url({url}/10)">Text</p><a href="{url}/11" ping="{url}/12">Link</a>
<img src="{url}/13" srcset="{url}/14 1x" onerror="top.document.title = 'owned'">
<script>top.document.title = 'owned'; fetch("{url}/15")</script>
<script src="{url}/16"></script><iframe src="{url}/17"></iframe><object data="{url}/18"></object>
<embed src="{url}/19"><video src="{url}/20" poster="{url}/21" autoplay></video>
<svg onload="top.document.title = 'owned'"><image href="{url}/22"/><use href="{url}/23#a"/></svg>
<form action="{url}/24" target=_top><input autofocus onfocus="form.submit()"></form>
<a href="javascript:top.document.title='owned'">Script</a></body></html>"""


def test_a_hostile_mail_runs_nothing_and_reaches_nobody(
    server: Emulator, browser: Browser, elsewhere: tuple[str, list[bytes]]
) -> None:
    """Opening a hostile message, and clicking in it, runs no script and connects to nothing."""
    url, reached = elsewhere
    number = server.mailbox.deliver(subject="Hello", html_body=hostile(url))

    with closing(browser.new_page()) as tab:
        tab.goto(f"{server.url}/messages/{number}")
        [frame] = tab.frames[1:]
        frame.get_by_text("Link").click()
        frame.get_by_text("Script").click()
        tab.wait_for_timeout(1000)
        assert frame.get_by_text("Text").is_visible()
        assert tab.title() == "Hello · R7 mail emulator"
        assert tab.url == f"{server.url}/messages/{number}"

        tab.goto(f"{server.url}/messages/{number}/html")
        tab.get_by_text("Link").click()
        tab.wait_for_timeout(500)
        assert tab.title() == "Mail"

    assert reached == []


def test_the_policies_hold_without_the_cleaning(
    server: Emulator, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If sanitising missed something, the frame still would run no script."""
    monkeypatch.setattr("airflow_provider_r7mail.emulator.page.clean", lambda text: text)
    script = "top.document.title = document.title = 'owned'"
    number = server.mailbox.deliver(
        html_body=f'<p>Text</p><script>{script}</script><img src="data:," onerror="{script}">'
    )

    with closing(browser.new_page()) as tab:
        for path in (f"/messages/{number}", f"/messages/{number}/html"):
            tab.goto(server.url + path)
            tab.frames[-1].get_by_text("Text").wait_for()
            tab.wait_for_timeout(200)
            assert "owned" not in tab.title()


@pytest.mark.parametrize("path", ["/", "/messages/{}", "/sent", "/calls"])
def test_a_phone_needs_no_sideways_scrolling(
    path: str, server: Emulator, http: httpx.Client, browser: Browser
) -> None:
    """However long names and subjects are, each page fits the width of a phone."""
    long = "Ж" * 300
    mailbox = server.mailbox
    mailbox.add_folder(66, long)
    number = mailbox.deliver(
        subject=long,
        body=long,
        html_body=f"<table width=2000><tr><td>{long}</table>",
        sender_name=long,
        to=[f"{long}@b.ru"],
        date=long,
        attachments=[(long, b"x", long)],
    )
    mailbox.send({"Subject": long, "Body": long, "HtmlBody": "", "To": [long], "Id": 0})
    log_in(http)
    http.post(MESSAGES, json={**LISTING, "SearchContext": {"Subject": long}})
    http.post(f"/api/{long}")
    server.faults.append(Fault(path=long))

    with closing(browser.new_page(viewport=PHONE)) as tab:
        tab.goto(server.url + path.format(number))
        tab.locator("summary").first.click()

        assert tab.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert tab.get_by_text("An emulator, not a mail server.").is_visible()


def test_the_fault_button_works(server: Emulator, http: httpx.Client, tab: Page) -> None:
    """A click makes the next call fail; the page shows the fault, then the failed call."""
    log_in(http)
    tab.goto(f"{server.url}/calls")
    tab.get_by_label("calls of").select_option("Messages")
    tab.get_by_role("button", name="503 from a proxy").click()
    tab.get_by_text("Messages: 503 from a proxy").wait_for()

    answers = [http.post(MESSAGES, json=LISTING).status_code for _ in range(2)]

    assert answers == [503, 200]
    tab.get_by_text("No active faults.").wait_for()
    assert tab.locator(".status").all_inner_texts() == ["200", "503", "200"]


def test_tokens_expire_and_all_is_reset_by_buttons(
    server: Emulator, http: httpx.Client, tab: Page
) -> None:
    """Two buttons make clients log in again, and clear calls and faults."""
    log_in(http)
    tab.goto(f"{server.url}/calls")

    tab.get_by_role("button", name="Expire all tokens").click()
    assert http.post(MESSAGES, json=LISTING).status_code == 401
    tab.get_by_role("button", name="Reset:").click()
    tab.get_by_text("No calls yet.").wait_for()

    assert server.requests == []


def test_the_page_follows_what_happens(server: Emulator, http: httpx.Client, tab: Page) -> None:
    """New mail and calls appear by themselves; open details stay open."""
    log_in(http)
    tab.goto(server.url)
    tab.locator("summary").first.click()

    server.mailbox.deliver(subject="Just now")
    http.post(MESSAGES, json=LISTING)

    tab.get_by_role("link", name="Just now").wait_for()
    assert tab.locator(".status").all_inner_texts() == ["200", "200"]
    assert tab.locator("details[open] .what").all_inner_texts() == ["POST Login"]
    assert tab.evaluate("document.activeElement.id") == "c1"


def test_a_stopped_server_is_told(browser: Browser) -> None:
    """When the emulator stops, its page says that it is out of date."""
    with closing(browser.new_page()) as tab, Emulator(Mailbox()) as server:
        tab.goto(server.url)
        assert not tab.get_by_text("The emulator has stopped").is_visible()
        server.stop()
        tab.get_by_text("The emulator has stopped").wait_for()


@pytest.mark.parametrize("name", ["127.0.0.1", "evil.example"])
def test_another_sites_form_presses_nothing(name: str, server: Emulator, browser: Browser) -> None:
    """A form on another web site, or one whose name resolves to this machine, changes nothing."""
    server.faults.append(Fault())
    target = f"http://{name}:{server.port}"

    with closing(browser.new_page()) as tab:
        tab.route(
            "http://site.example/",
            lambda route: route.fulfill(
                content_type="text/html",
                body=f"<form method=post action={target}/reset><button>Win a prize</button></form>",
            ),
        )
        tab.goto("http://site.example/")
        with tab.expect_navigation() as refused:
            tab.get_by_role("button").click()
        assert refused.value is not None
        assert refused.value.status == 403
        opened = tab.goto(f"http://evil.example:{server.port}/")
        assert opened is not None
        assert opened.status == 403

    assert len(server.faults) == 1
