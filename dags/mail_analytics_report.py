"""The page of `mail_analytics`: SVG charts drawn by Altair, in the template next to this file.

Mail is untrusted. Its text is never markup here: Altair escapes it in the SVG, Jinja in the page,
and the page's Content-Security-Policy forbids scripts and network access.
"""

from __future__ import annotations

import calendar
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd  # noqa: TID253 - only a task imports this file
import vl_convert
from jinja2 import Environment, StrictUndefined

TEMPLATE = Path(__file__).with_suffix(".html")
COLOURS = ["#2b62d9", "#f0883e", "#159a8c", "#8957e5", "#c9436f", "#7a8699"]
INK, SOFT, LINE = "#1c2733", "#5b6876", "#e4e8ee"
WIDE, HALF = 1000, 470  # pixels, before the page scales them
BARS = 10  # bars per chart; the rest are summed up
ROWS = 40  # rows of a chart's table; all are in the mart
WIDEST = 120  # days; longer spans have a bar per week
LONGEST = 28  # characters of a name
SIDES = {True: "we answer", False: "they answer"}
SPANS = {
    "< 15 min": 0.25,
    "< 1 hour": 1,
    "< 4 hours": 4,
    "< 1 day": 24,
    "< 3 days": 72,
    "longer": float("inf"),
}
AGES = {"day": "today", "week": "this week", "older": "older"}


@dataclass(frozen=True)
class Chart:
    """A chart, its message in one sentence, and its numbers."""

    title: str
    says: str
    svg: str
    table: pd.DataFrame
    wide: bool = False


def shown(text: object) -> str:
    """Make text from mail safe to display: short, without control or bidirectional characters."""
    plain = "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in str(text))
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…"


def of_bytes(number: float) -> str:
    """Format a size for people."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def of_hours(hours: float) -> str:
    """Format a duration for people."""
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def top(frame: pd.DataFrame, name: str, number: str, count: int) -> pd.DataFrame:
    """Sum by name; keep the largest and combine the rest into one."""
    sums = frame.groupby(name)[number].sum().sort_values(ascending=False, kind="stable")
    rest = sums[count:]
    if len(rest):
        sums = pd.concat([sums[:count], pd.Series({f"{len(rest)} others": rest.sum()})])
    return sums.rename_axis(name).reset_index(name=number)


def make_report(
    marts: Mapping[str, pd.DataFrame], zone: str, folders: Mapping[str, str], made: datetime
) -> str:
    """Build the page.

    :param marts: the marts by name, as `mail_analytics` writes them
    :param zone: the time zone of their days and hours
    :param folders: folder names by id
    :param made: the creation time to show
    :return: HTML
    """
    several = marts["daily_volume"]["mailbox"].nunique() > 1

    def named(mart: str) -> pd.DataFrame:
        frame = marts[mart]
        names = frame["folder"].map(lambda number: folders.get(number, f"folder {number}"))
        full = frame["mailbox"] + " / " + names if several else names
        return frame.assign(folder=full.map(shown))

    volume, answers = named("daily_volume"), marts["response_times"]
    backlog, files = named("unread_backlog"), marts["attachment_types"]
    came = volume[~volume["was_sent"]]
    ours = answers[answers["was_sent"]]["hours"]
    charts = (
        []
        if volume.empty
        else [
            _volume(volume),
            _backlog(backlog),
            _senders(came),
            _hours(marts["busiest_hours"]),
            _answers(answers),
            _attachments(files),
        ]
    )
    numbers = {
        "received": f"{came['messages'].sum():,}",
        "sent": f"{volume['messages'].sum() - came['messages'].sum():,}",
        "unread": f"{backlog['unread'].sum():,}",
        "our median response time": of_hours(ours.median()) if len(ours) else "–",
        "attachments": of_bytes(files["bytes"].sum()),
    }
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    return template.render(
        mailboxes=", ".join(shown(name) for name in sorted(volume["mailbox"].unique())),
        span="No mail" if volume.empty else f"{volume['day'].min()} to {volume['day'].max()}",
        zone=zone,
        made=made,
        numbers=numbers,
        charts=[chart for chart in charts if len(chart.table)],
        rows=ROWS,
    )


def _volume(volume: pd.DataFrame) -> Chart:
    largest = top(volume, "folder", "messages", len(COLOURS) - 1)["folder"]
    folder = volume["folder"].where(volume["folder"].isin(largest), "others")
    days = pd.to_datetime(volume["day"])
    weekly = (days.max() - days.min()).days > WIDEST
    by = "week" if weekly else "day"
    if weekly:
        days -= pd.to_timedelta(days.dt.weekday, unit="D")
    dated = volume.assign(folder=folder, **{by: days.dt.strftime("%Y-%m-%d")})
    table = dated.groupby([by, "folder"]).agg(messages=("messages", "sum")).reset_index()
    total = table.groupby(by)["messages"].sum()
    average = total.sum() / ((days.max() - days.min()).days // (7 if weekly else 1) + 1)
    order = [name for name in [*largest, "others"] if name in set(folder)]
    chart = alt.Chart(table).mark_bar().encode(
        alt.X(
            f"{by}:T",
            timeUnit="utcyearmonthdate",
            title=None,
            axis=alt.Axis(format="%-d %b", tickCount=10),
        ),
        alt.Y("messages:Q", title=None, axis=alt.Axis(tickMinStep=1)),
        alt.Color("folder:N", sort=order, scale=alt.Scale(domain=order, range=COLOURS), title=None),
    )  # fmt: skip
    when = f"in the week of {total.idxmax()}" if weekly else f"on {total.idxmax()}"
    says = f"{average:.0f} per {by} on average; the most, {total.max()}, {when}."
    return Chart(f"Messages by {by}", says, _svg(chart, WIDE, 220), table, wide=True)


def _senders(came: pd.DataFrame) -> Chart:
    table = top(came, "domain", "messages", BARS)
    table["domain"] = table["domain"].replace("", "no sender").map(shown)
    share = table["messages"].head(3).sum() / max(table["messages"].sum(), 1)
    says = f"The top three domains send {share:.0%} of all mail received."
    return Chart("Top senders", says, _bars(table, "domain", "messages"), table)


def _hours(busiest: pd.DataFrame) -> Chart:
    names = list(calendar.day_name)
    grid = pd.MultiIndex.from_product([names, range(24)], names=["weekday", "hour"])
    sums = busiest.groupby(["weekday", "hour"])["messages"].sum().reindex(grid, fill_value=0)
    table = sums.reset_index()
    table["day"] = table["weekday"].str[:3]
    busy = table.iloc[int(table["messages"].argmax())]
    chart = alt.Chart(table).mark_rect(cornerRadius=2, stroke="white", strokeWidth=1.5).encode(
        alt.X("hour:O", title=None, axis=alt.Axis(labelExpr="datum.value % 3 ? '' : datum.label")),
        alt.Y("day:O", sort=[name[:3] for name in names], title=None),
        alt.Color(
            "messages:Q",
            scale=alt.Scale(range=["#eff3fb", "#8fb0f0", COLOURS[0], "#13317a"]),
            title=None,
            legend=alt.Legend(gradientLength=HALF - 60, gradientThickness=8, tickMinStep=1),
        ),
    )  # fmt: skip
    says = (
        f"Most mail arrives on {busy['weekday']}s from {busy['hour']}:00 to {busy['hour'] + 1}:00: "
        f"{busy['messages']} messages."
    )
    found = table[table["messages"] > 0].sort_values("messages", ascending=False, kind="stable")
    return Chart("Busiest hours", says, _svg(chart, HALF, 300), found.drop(columns="day"))


def _answers(answers: pd.DataFrame) -> Chart:
    cut = pd.cut(answers["hours"], [-1.0, *SPANS.values()], labels=list(SPANS), right=False)
    table = answers.assign(within=cut.astype("str"), who=answers["was_sent"].map(SIDES))
    table = table.groupby(["who", "within"], as_index=False).size()
    table = table.rename(columns={"size": "answers"})
    table["order"] = table["within"].map(list(SPANS).index)
    table = table.sort_values(["who", "order"]).drop(columns="order")
    chart = alt.Chart(table).mark_bar().encode(
        alt.X("within:O", scale=alt.Scale(domain=list(SPANS)), title=None),
        alt.XOffset("who:N", sort=list(SIDES.values())),
        alt.Y("answers:Q", title=None, axis=alt.Axis(tickMinStep=1)),
        alt.Color("who:N", scale=alt.Scale(domain=list(SIDES.values()), range=COLOURS), title=None),
    )  # fmt: skip
    middle = answers.groupby("was_sent")["hours"].median()
    says = "; ".join(
        f"{SIDES[side]} within {of_hours(middle[side])}" for side in SIDES if side in middle
    )
    says = f"Half of the time {says}."
    return Chart("Response times", says, _svg(chart, HALF, 270), table)


def _backlog(backlog: pd.DataFrame) -> Chart:
    order = list(AGES.values())
    named = backlog.rename(columns=AGES).groupby("folder")[["unread", *order]].sum()
    named = named.nlargest(BARS, "unread").reset_index()
    table = named.melt("folder", order, "age", "number").query("number > 0")
    chart = alt.Chart(table).mark_bar(height=20).encode(
        alt.X("number:Q", title=None, axis=alt.Axis(tickMinStep=1, tickCount=8)),
        alt.Y("folder:N", sort="-x", title=None),
        alt.Color("age:N", sort=order, scale=alt.Scale(domain=order, range=COLOURS), title=None),
        alt.Order("rank:Q"),
    ).transform_calculate(rank=f"indexof({order}, datum.age)")  # fmt: skip
    oldest = backlog["oldest"].min()
    says = f"The oldest unread message is from {oldest:%Y-%m-%d}." if len(table) else ""
    return Chart("Unread", says, _svg(chart, WIDE, 70 + 30 * len(named)), table, wide=True)


def _attachments(files: pd.DataFrame) -> Chart:
    sums = files.groupby("type", as_index=False)[["files", "bytes"]].sum()
    sums["type"] = sums["type"].replace("", "no type").map(shown)
    table = sums.sort_values("bytes", ascending=False, kind="stable", ignore_index=True)
    table["size"] = table["bytes"].map(of_bytes)
    most = f"; largest by size: {table['type'][0]}" if len(table) else ""
    says = f"{files['files'].sum():,} files{most}."
    return Chart(
        "Attachments by size", says, _bars(table.head(BARS), "type", "bytes", "size"), table
    )


def _bars(table: pd.DataFrame, name: str, number: str, label: str | None = None) -> str:
    """Draw horizontal bars with their values."""
    bars = alt.Chart(table).encode(
        alt.X(f"{number}:Q", axis=None),
        alt.Y(f"{name}:N", sort=None, title=None, axis=alt.Axis(labelLimit=220)),
    )
    text = bars.mark_text(align="left", dx=5, color=SOFT).encode(alt.Text(label or number))
    return _svg(bars.mark_bar(color=COLOURS[0], height=16) + text, HALF, 20 + 25 * len(table))


def _svg(chart: alt.Chart | alt.LayerChart, width: int, height: int) -> str:
    """Draw a chart in the page's style."""
    quiet: dict[str, Any] = {"domain": False, "ticks": False, "labelColor": SOFT, "gridColor": LINE}
    sized = chart.properties(
        width=width,
        height=height,
        background="transparent",
        autosize=alt.AutoSizeParams(type="fit", contains="padding"),
    )
    spec = sized.to_dict() | {
        "config": {
            # Fonts of the same width on Windows, macOS and Linux, so that labels fit.
            "font": "Verdana, DejaVu Sans, sans-serif",
            "view": {"stroke": None},
            "axis": {**quiet, "labelFontSize": 11, "labelPadding": 6},
            "axisX": {"grid": False, "labelAngle": 0, "labelFlush": False, "labelOverlap": True},
            "legend": {
                "orient": "top",
                "labelColor": INK,
                "labelFontSize": 11,
                "symbolType": "circle",
                "columnPadding": 16,
            },
            "bar": {"cornerRadius": 2},
            "text": {"fontSize": 11},
        }
    }
    return vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
