"""The documentation: built from nothing, the same in both languages, and what it shows works."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_r7mail import exceptions
from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.emulator.page import FAULTS
from tests.conftest import AIRFLOW_2

pytestmark = pytest.mark.skipif(AIRFLOW_2, reason="the examples are for Airflow 3")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LANGUAGES = ("en", "ru")
PAGES = sorted(path.name for path in (DOCS / "en").glob("*.md"))
FENCED = re.compile(r"^(`{3,})(.*?)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


def read(language: str, page: str) -> str:
    """A page's source."""
    return (DOCS / language / page).read_text(encoding="utf-8")


# -- both languages ---------------------------------------------------------------------------


def test_the_same_pages_in_both_languages() -> None:
    """A page that is there in English is there in Russian, and the other way round."""
    assert sorted(path.name for path in (DOCS / "ru").glob("*.md")) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_the_same_content_in_both_languages(page: str) -> None:
    """Both have the same sections, blocks of code, pictures and links, in the same order."""
    english, russian = (_outline(read(language, page)) for language in LANGUAGES)

    assert russian == english


def _outline(text: str) -> dict[str, list[str]]:
    """What a translation leaves as it is."""
    blocks = [(name.strip(), body) for _, name, body in FENCED.findall(text)]
    prose = FENCED.sub("", text)
    return {
        "sections": [mark for mark, _ in re.findall(r"^(#+) (.*)$", prose, re.MULTILINE)],
        "code": [_code(name, body) for name, body in blocks],
        "pictures": re.findall(r"!\[[^\]]*\]\(([^)]+)\)", prose),
        # Sections have other names in another language, and so may other sites.
        "links": sorted(re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", prose)),
    }


def _code(name: str, body: str) -> str:
    """A block without what may be translated: words for a table, comments, output, captions."""
    if name.startswith("{r7mail-"):
        return name.split(maxsplit=1)[0]
    lines = [line for line in body.splitlines() if line[:1] != "#" and ":caption:" not in line]
    if any(line.startswith("$ ") for line in lines):
        lines = [line for line in lines if line.startswith("$ ")]
    return "\n".join([name, *(re.sub(r"\s+#.*$", "", line) for line in lines)])


# -- the site ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=LANGUAGES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site in a language, built from nothing as `make docs` does."""
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "docs", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    [options] = re.findall(r"sphinx-build (.*?) --define", recipe)
    built: Path = tmp_path_factory.mktemp("site") / request.param
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", *options.split()),
            *("--define", f"language={request.param}", DOCS / request.param, built),
        ],
        cwd=ROOT,
        # As on a machine without a network.
        env=os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return built


class _Html(HTMLParser):
    """The ids of a page, and what a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of an element."""
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag in {"script", "img", "iframe", "source"} or given.get("rel") == "stylesheet":
            self.loads += [given[name] for name in ("src", "href") if name in given]


def test_the_site_builds_and_loads_nothing(site: Path) -> None:
    """No warning, no broken link; and a browser without a network shows all of it."""
    pages = {path.name: _Html(path.read_text(encoding="utf-8")) for path in site.glob("*.html")}
    remote = r"(https?:)?//"

    assert {name.removesuffix(".md") + ".html" for name in PAGES} <= pages.keys()
    loaded = {address for page in pages.values() for address in page.loads}
    assert [address for address in loaded if re.match(remote, address)] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(rf"(?:@import|url\()\s*[\"']?{remote}[^)\s]*", styles) == []


def test_the_drawing_has_every_module(site: Path) -> None:
    """The drawing of the rooms shows each folder and each module of the package, and no others."""
    text = (site / "contributing.html").read_text(encoding="utf-8")
    [drawing] = re.findall(r'<div class="rooms">.*?</div>', text, re.DOTALL)
    package = ROOT / "airflow_provider_r7mail"
    paths = [path.relative_to(package) for path in package.rglob("*.py")]
    # A folder within a folder of a room is not drawn: check/questions/.
    folders = {path.parent.name for path in paths if path.parent.name and len(path.parts) < 4}

    shown = re.findall(r'<text class="(?:name|modules)"[^>]*>([^<]*)', drawing)
    names = {name.rstrip(",").removesuffix("/") for line in shown for name in line.split(", ")}
    modules = {path.stem for path in paths if len(path.parts) < 3} - {"__init__", "exceptions"}
    assert names == modules | folders | {package.name, "exceptions.py"}
    assert drawing.count('class="arrow"') >= len(folders)


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_fault_button_is_described(language: str) -> None:
    """Each button on the emulator's page that makes calls fail has a row in its table."""
    page = read(language, "emulator.md")
    assert [label for label, _ in FAULTS.values() if f"\n| {label} |" not in page] == []


def test_each_page_leads_to_its_twin(site: Path) -> None:
    """Each page has a link to the same page in the other language."""
    other = {"en": "ru", "ru": "en"}[site.name]

    for page in PAGES:
        name = page.replace(".md", ".html")
        text = (site / name).read_text(encoding="utf-8")
        assert f'href="../{other}/{name}"' in text, page


def test_each_error_has_its_place(site: Path) -> None:
    """The place that ends an error's message is one in the built site, in both languages."""
    page = _Html((site / f"{exceptions.PAGE}.html").read_text(encoding="utf-8"))
    kinds = [kind for kind in vars(exceptions).values() if isinstance(kind, type)]
    errors = [kind for kind in kinds if issubclass(kind, exceptions.R7MailError)]

    assert errors
    assert {kind.__name__.lower() for kind in errors} - page.ids == set()


# -- what it says of errors -------------------------------------------------------------------


def _said() -> str:
    """All text in the package's code, placeholders left out."""
    found = []
    for path in (ROOT / "airflow_provider_r7mail").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [
                part.value
                for part in parts
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            found.append("\0".join(texts))
    return "\n".join(found).replace("`", "")


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_messages_are_those_of_the_package(language: str) -> None:
    """A message that I look for on the page is there as the package says it."""
    text, said = read(language, f"{exceptions.PAGE}.md"), _said()
    by_message = text[text.index("\n### ") : text.rindex("\n## ")]
    quoted = re.findall(r"^\| (?!---)([^|]*?) \|[^|]*\|[^|]*\|$", by_message, re.MULTILINE)
    heading = quoted[0]
    pieces = [
        piece.strip(" .,")
        for row in quoted
        if row != heading
        for piece in re.split(r"\.\.\.|; |, (?=`)|: |\[0\]:|\([^)]*\)", row.replace("`, `", "; "))
    ]

    assert len(pieces) > 80
    assert [piece for piece in pieces if piece.replace("`", "") not in said] == []


# -- what it shows ----------------------------------------------------------------------------


def _commands(language: str) -> list[str]:
    """The tutorial's commands, in order."""
    blocks = [body for _, name, body in FENCED.findall(read(language, "tutorial.md"))]
    found = [line[2:] for body in blocks for line in body.splitlines() if line.startswith("$ ")]
    assert found
    return found


@contextlib.contextmanager
def _emulator(command: str, folder: Path) -> Iterator[str]:
    """The server of the tutorial's second terminal; what it printed."""
    said = folder / "emulator.txt"
    with (
        said.open("w") as file,
        subprocess.Popen(shlex.split(command), stdout=file, cwd=ROOT) as process,
    ):
        try:
            while "Ctrl-C" not in (text := said.read_text(encoding="utf-8")):
                assert process.poll() is None
                time.sleep(0.1)
            yield text
        finally:
            process.terminate()


@pytest.mark.slow
def test_the_tutorial_works(tmp_path: Path) -> None:
    """The tutorial's commands, typed in as they stand, do what it says."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    installed = {"make install", ". .venv/bin/activate"}
    commands = [
        # Other tests have that port and that folder too.
        line.replace("8025", port).replace("$PWD/.tutorial", str(tmp_path))
        for line in _commands("en")
        if line not in installed
    ]
    commands = [line.replace(".tutorial", str(tmp_path)) for line in commands]
    serve = commands.index("r7mail emulator")
    typed = "\n".join([*commands[:serve], *commands[serve + 1 :]])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(tmp_path), "NO_PROXY": "*", "LC_ALL": "C.UTF-8"}

    program = Path(sys.executable).parent / "r7mail"
    with _emulator(f"{program} emulator --port {port}", tmp_path) as said:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", typed],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_emulator/state") as answer:
            state = json.load(answer)

    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "Fine: no problems found." in done.stdout
    first, again = re.findall(r"│ messages │\n.*?└", done.stdout, re.DOTALL)
    assert first == again
    assert "0 row" not in first
    assert "│" in first.splitlines()[3]
    assert state["sent"] == 1
    [(login, password)] = re.findall(r"login +(\S+)\npassword +(\S+)\n", said)
    assert f'"login": "{login}", "password": "{password}"' in typed


def test_the_variants_run(
    server: Emulator, run_dag: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The how-tos' variants of the extract do what is said of them."""
    monkeypatch.setenv("AIRFLOW_VAR_R7MAIL_LAKE", str(tmp_path))
    text = (DOCS / "examples" / "variants.py").read_text(encoding="utf-8")
    # A disk in place of S3, which tests/airflow/test_transfers.py has.
    text = text.replace("s3://bucket", str(tmp_path)).replace('storage_conn_id="aws_default",', "")

    result = run_dag(text)

    assert result.state == "success", result.states
    assert {file["table"] for file in result.xcom("extract_headers")["files"]} == {"messages"}
    [sent] = server.mailbox.sent
    assert "Messages: 0" in sent["HtmlBody"]
