"""Take a screenshot of the page that mail_analytics builds in the demo: `make pictures`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from airflow_provider_r7mail.cli.demo import run_demo
from tests.browser import chromium

IMAGES = Path(__file__).parents[1] / "images"
WIDTH = 1120
CARDS = 4  # how many charts to show, from the top of the page


def main() -> None:
    """Run the demo and take a screenshot of the page down to the end of its first charts."""
    with TemporaryDirectory() as folder, chromium() as browser:
        run_demo(Path(folder), keep=False)
        page = browser.new_page(viewport={"width": WIDTH, "height": 800})
        page.goto((Path(folder) / "lake/marts/report.html").as_uri())
        last = page.locator("section").nth(CARDS - 1)
        height = last.evaluate("card => card.getBoundingClientRect().bottom") + 16
        page.screenshot(
            path=IMAGES / "report.png",
            full_page=True,
            clip={"x": 0, "y": 0, "width": WIDTH, "height": height},
        )


if __name__ == "__main__":
    main()
