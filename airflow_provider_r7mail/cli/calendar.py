"""Draw the days that an audit looked at: in the terminal, and as a page of its own."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator
from datetime import date, timedelta
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_r7mail.lake.audit import Report

# From best to worst; a day is as good as the worst that is in it.
STATES = ("whole", "repaired", "missing", "differs")
MARKS = {"whole": "[green]■[/]", "repaired": "[cyan]■[/]", "missing": "[yellow]□[/]"}
WORST = "[red]✗[/]"
ABSENT = frozenset({"missing", "unfinished"})
LONGEST = 366 * 30  # days; further ones are strays
DAY = timedelta(days=1)

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Audit of folder {folder}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; color: #222; background: #fff; }}
table {{ border-collapse: collapse; }}
.days td {{ width: 1.1rem; height: 1.1rem; padding: 0; border: 1px solid #fff; }}
.days th {{ text-align: left; font-weight: normal; padding-right: 1rem; white-space: nowrap; }}
.whole {{ background: #3a9a5b; }} .repaired {{ background: #3f8fc4; }}
.missing {{ background: #e5b93c; }} .differs {{ background: #c93c37; }}
.found td, .found th {{ border-bottom: 1px solid #ddd; padding: .3rem 1rem .3rem 0;
  text-align: left; vertical-align: top; }}
.key span {{ display: inline-block; width: 1rem; height: 1rem; vertical-align: -2px; }}
</style>
<h1>Audit of folder {folder}</h1>
<p>{summary}</p>
{findings}
<p class="key">{key}</p>
<table class="days">
{months}
</table>
{notes}
</html>
"""


def days(report: Report) -> dict[date, str]:
    """Return the state of each day with regular windows, or between them."""
    regular = [entry for entry in report.windows if not entry.strays]
    found: dict[date, str] = {}
    if not regular:
        return found
    first = regular[0].bounds[0].date()
    last = (max(entry.bounds[1] for entry in regular) - timedelta.resolution).date()
    first = date.fromordinal(max(first.toordinal(), last.toordinal() - LONGEST))
    for number in range(first.toordinal(), last.toordinal() + 1):
        found[date.fromordinal(number)] = "whole"
    for finding in report.findings:
        if finding.start is None or finding.end is None:
            continue
        state = "missing" if finding.kind in ABSENT else "differs"
        state = "repaired" if finding.repaired else state
        day = max(finding.start.date(), first)
        while day in found and day <= (finding.end - timedelta.resolution).date():
            found[day] = max(found[day], state, key=STATES.index)
            day += DAY
    return found


def months(states: dict[date, str]) -> Iterator[tuple[str, list[str | None]]]:
    """Yield each month with the states of its days; None for days without windows."""
    for month in sorted({day.replace(day=1) for day in states}):
        _, length = monthrange(month.year, month.month)
        yield f"{month:%Y-%m}", [states.get(month.replace(day=n + 1)) for n in range(length)]


def draw_calendar(report: Report) -> str:
    """Return the calendar for the terminal, in rich's markup; a line per month."""
    lines = []
    for month, states in months(days(report)):
        marks = (" " if state is None else MARKS.get(state, WORST) for state in states)
        lines.append(f"{month} {''.join(marks)}")
    return "\n".join(lines)


def make_page(report: Report) -> str:
    """Return the page: it needs nothing from elsewhere, and escapes all it shows."""
    numbers = report.record()
    words = "Everything is in order." if report.in_order else "The tables differ."
    summary = (
        f"{words} Windows: {numbers['windows']}. Messages: {numbers['messages']}. Compared by "
        f"{numbers['compared']}. Requests: {numbers['requests']}."
    )
    rows = "\n".join(f"<tr><td>{escape(str(finding))}</td></tr>" for finding in report.findings)
    lines = "\n".join(
        f"<tr><th>{month}</th>{''.join(map(_cell, states))}</tr>"
        for month, states in months(days(report))
    )
    return PAGE.format(
        folder=report.folder,
        summary=escape(summary),
        findings=f'<table class="found">\n{rows}\n</table>' if rows else "",
        key=" ".join(f'<span class="{state}"></span> {state}' for state in STATES),
        months=lines,
        notes="\n".join(f"<p>{escape(note)}</p>" for note in report.notes),
    )


def _cell(state: str | None) -> str:
    return f'<td class="{state}" title="{state}"></td>' if state else "<td></td>"
