"""Boxes, marks and bars for figures.py: how things work, and what was measured, from the package and its records."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from architecture import BOLD, CENTERED, END, MARGIN, WIDTH, Drawing, Theme

from resnet_core.comparison.compare import DEFAULT_RUNGS
from resnet_core.weights.containers import READERS

DOCS = Path(__file__).parent
SMALL = 'font-size="11"'


def box(drawing: Drawing, x: float, y: float, width: float, words: str, more: str, color: str = "") -> None:
    drawing.rectangle(x, y, width, 46, drawing.theme.box, f'stroke="{color or drawing.theme.line}"')
    drawing.text(x + width / 2, y + 20, words, style=f"{CENTERED} {BOLD}")
    drawing.text(x + width / 2, y + 36, more, color=drawing.theme.muted, style=f"{CENTERED} {SMALL}")


def ranks(theme: Theme) -> str:
    """What two processes share in a step, and what each has of its own."""
    drawing = Drawing(theme)

    def row(y: float, number: int) -> None:
        drawing.text(MARGIN, y - 10, f"rank {number}", style=BOLD)
        box(drawing, MARGIN, y, 118, "its half", "images of the batch")
        drawing.arrow(142, y + 23, 160)
        box(drawing, 164, y, 150, "forward", "weights: equal to the bit")
        drawing.arrow(318, y + 23, 336)
        box(drawing, 340, y, 150, "BatchNorm", "statistics of its half", theme.stride)
        drawing.arrow(494, y + 23, 512)
        box(drawing, 516, y, 110, "backward", "its own gradient")
        drawing.path(f"M630,{y + 23}H652V{125 if number == 0 else 143}", theme.shortcut)
        drawing.path(f"M684,{125 if number == 0 else 143}V{y + 23}H700m-5,-3.5l5,3.5l-5,3.5", theme.shortcut)
        box(drawing, 704, y, 76, "update", "the same")

    row(40, 0)
    row(182, 1)
    drawing.rectangle(600, 117, 130, 34, theme.box, f'stroke="{theme.shortcut}"')
    drawing.text(665, 138, "mean of gradients", style=f"{CENTERED} {BOLD}", color=theme.shortcut)
    drawing.text(MARGIN, 138, "one global batch, split in two", color=theme.muted)
    return drawing.svg(244, "One step of two ranks: separate BatchNorm statistics, one mean gradient")


def file(theme: Theme) -> str:
    """The way of a weights file into a network."""
    drawing = Drawing(theme)
    stations: list[tuple[float, str, str, Sequence[str]]] = [
        (112, "locate", "what you name", ("a weights file", "a folder with one", "a run's folder", "a published set")),
        (172, "read", "nothing in it runs", list(READERS)),
        (150, "check", "before a network exists", ("which model it is", "names and shapes", "finite values")),
        (112, "build", "the model that fits", ("stem and stride", "input channels", "classes")),
        (110, "load", "all or nothing", ("the weights, or an", "unchanged network")),
    ]  # fmt: skip
    x: float = MARGIN
    for number, (width, words, more, details) in enumerate(stations):
        box(drawing, x, 74, width, words, more, theme.shortcut if words == "load" else "")
        for line, detail in enumerate(details):
            drawing.text(x + width / 2, 142 + 16 * line, detail, color=theme.muted, style=f"{CENTERED} {SMALL}")
        if number < 3:
            drawing.path(f"M{x + width / 2:.1f},70V50m-3.5,5l3.5,-5l3.5,5", theme.stride)
        x += width + 26
        if number < len(stations) - 1:
            drawing.arrow(x - 22, 97, x - 4)

    end = MARGIN + 112 + 26 + 172 + 26 + 150
    drawing.rectangle(MARGIN, 18, end - MARGIN, 28, theme.box, f'stroke="{theme.stride}"')
    drawing.text(
        (MARGIN + end) / 2, 36, "refused: what the file is, and what to do", style=CENTERED, color=theme.stride
    )
    return drawing.svg(146 + 16 * len(READERS), "The way of a weights file: located, read, checked, built, loaded")


def checkpoint(theme: Theme) -> str:
    """A step and its checkpoint, how often each of their phases was killed, and where a run then continues."""
    page = (DOCS / "reliability.md").read_text(encoding="utf-8")
    kills = dict(re.findall(r"^\| ([\w ]+) \| (\d+) \|$", page, re.MULTILINE))
    (tally,) = re.findall(r"\*\*(\d+ kills of\s\d+ runs, \d+ deviations)\*\*", page)
    drawing = Drawing(theme)

    def phase(x: float, y: float, width: float, words: str, key: str) -> None:
        box(drawing, x, y, width, words, "")
        drawing.text(x + width / 2, y + 36, f"{kills[key]} kills", color=theme.stride, style=f"{CENTERED} {SMALL}")

    left, renamed = 110.0, 677.0
    for y, lane in ((53, "training"), (123, "saving"), (182, "on the disk"), (255, "if killed")):
        drawing.text(MARGIN, y, lane, style=BOLD)
    for number, words in enumerate(("load", "forward", "backward", "update", "evaluation")):
        phase(left + 90 * number, 26, 84, words, words)
    drawing.rectangle(left + 450, 26, WIDTH - MARGIN - left - 450, 46, theme.box, f'stroke="{theme.line}"')
    drawing.text((left + 450 + WIDTH - MARGIN) / 2, 53, "the next steps", color=theme.muted, style=CENTERED)
    drawing.text(left + 440, 123, "a copy of step 100, in a thread", color=theme.muted, style=END)
    drawing.path("M557,72V119H560", theme.line)
    for x, words in ((564, "written"), (642, "renamed"), (720, "pruned")):
        phase(x, 96, 70 if words != "pruned" else 60, words, f"checkpoint is {words}")

    def bar(x: float, to: float, y: float, words: str, color: str, style: str = "") -> None:
        drawing.rectangle(x, y, to - x, 22, color, style)
        drawing.text((x + to) / 2, y + 15, words, style=f"{CENTERED} {SMALL}")

    bar(left, WIDTH - MARGIN, 166, "checkpoint of step 50, whole", theme.ends)
    bar(564, renamed - 2, 192, "not yet whole", "none", f'stroke="{theme.line}" stroke-dasharray="3 2"')
    bar(renamed + 2, WIDTH - MARGIN, 192, "step 100, whole", theme.stages[0])
    drawing.path(f"M{renamed},142V268", theme.shortcut, 'stroke-dasharray="5 3"')
    drawing.path(f"M{left},230v6H{renamed - 4}v-6", theme.line)
    drawing.path(f"M{renamed + 4},230v6H{WIDTH - MARGIN}v-6", theme.line)
    drawing.text((left + renamed) / 2, 255, "continues from step 50, the newest whole checkpoint", style=CENTERED)
    drawing.text((renamed + WIDTH - MARGIN) / 2, 255, "from step 100", style=CENTERED)
    words = f"Either way the run ends with the same bits: {tally}."
    drawing.text(left, 288, words, color=theme.shortcut, style=BOLD)
    return drawing.svg(304, "A step, its checkpoint, and where a run continues that was killed in one of their phases")


def rungs(theme: Theme) -> str:
    """Which rungs find which of the report's planted mistakes; mistakes that the same rungs find share a line."""
    report = json.loads((DOCS / "report" / "parity.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for planted in report["sections"]["Known mistakes made in ours"]:
        found[tuple(planted["rungs"])].append(planted["mistake"])
    lines = sorted(found.items(), key=lambda each: (DEFAULT_RUNGS.index(each[0][0]), -len(each[1])))

    drawing = Drawing(theme)
    left, top, step = 300.0, 148.0, (WIDTH - MARGIN - 300) / len(DEFAULT_RUNGS)
    drawing.text(MARGIN, top - 14, "each dot: this rung finds this mistake", color=theme.muted)
    for column, name in enumerate(DEFAULT_RUNGS):
        x = left + step * (column + 0.5)
        drawing.text(x + 4, top - 14, name, style=f'transform="rotate(-50 {x + 4:.1f} {top - 14:.1f})"')
    for row, (names, mistakes) in enumerate(lines):
        y = top + 26 * row
        drawing.rectangle(left, y - 9, WIDTH - MARGIN - left, 22, theme.box)
        words = mistakes[0] if len(mistakes) == 1 else f"{mistakes[0]}, and {len(mistakes) - 1} more"
        drawing.text(left - 10, y + 6, words, style=END)
        for name in names:
            x = left + step * (DEFAULT_RUNGS.index(name) + 0.5)
            drawing.elements.append(f'<circle cx="{x:.1f}" cy="{y + 2:.0f}" r="6" fill="{theme.stride}"/>')
    return drawing.svg(top + 26 * len(lines), f"Which rungs find each of {sum(map(len, found.values()))} mistakes")


# Bars ----------------------------------------------------------------------------------------------------------------

ROW = 17
Bars = tuple[str, list[tuple[str, float]], float]
"""Words above, bars with their names, and a limit, 0 where there is none."""


def speed_records() -> dict[str, dict[str, Any]]:
    """The content of each docs/results/speed-*.json, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((DOCS / "results").glob("speed-*.json"))}


def panels(record: dict[str, Any]) -> Iterator[tuple[str, list[Bars]]]:
    """Title and groups of bars, the fastest first, of each case of a record."""
    for case in record.get("records", ()):
        rates = [rate for rate in case["rates"] if rate["images_per_second"]]
        groups: list[Bars] = []
        for precision in dict.fromkeys(rate["precision"] for rate in rates):
            those = [rate for rate in rates if rate["precision"] == precision]
            those.sort(key=lambda rate: -rate["images_per_second"])
            limits = [each["images_per_second"] / each["ceiling_share"] for each in those if each["ceiling_share"]]
            bars = [(each["form"], each["images_per_second"]) for each in those]
            groups.append((precision, bars, max(limits, default=0)))
        if groups:
            yield f"{case['model']} {record['what']}, batch {case['batch']}: images/s", groups
    if "startup" in record:
        yield "seconds of a new process", [("", [(each["what"], each["seconds"]) for each in record["startup"]], 0)]


def speed(theme: Theme, record: dict[str, Any]) -> str:
    """Two panels side by side, of which each is as wide as half of the drawing."""
    drawing, y = Drawing(theme), 0.0
    drawn = list(panels(record))
    for first, second in zip_longest(drawn[::2], drawn[1::2]):
        y += max(draw_panel(drawing, x, y, each) for x, each in ((MARGIN, first), (MARGIN + 390, second)) if each)
    drawing.rectangle(MARGIN, y + 4, 10, 10, theme.shortcut)
    drawing.text(MARGIN + 16, y + 13, "ours", color=theme.muted)
    if "records" in record:
        drawing.path(f"M{MARGIN + 70},{y + 2}v14", theme.stride, 'stroke-dasharray="3 2"')
        drawing.text(MARGIN + 78, y + 13, "the machine's limit in that precision", color=theme.muted)
    return drawing.svg(y + 24, f"{record['what'].capitalize()}: ours beside the others")


def draw_panel(drawing: Drawing, x: float, y: float, panel: tuple[str, list[Bars]]) -> float:
    """The height that it takes."""
    theme = drawing.theme
    title, groups = panel
    left, width, top = x + 214, 118, y
    most = max(max(limit, *(value for _, value in bars)) for _, bars, limit in groups)
    drawing.text(x, y + 18, title, style=BOLD)
    y += 30
    for words, bars, limit in groups:
        if words:
            drawing.text(left, y + 10, words, color=theme.muted, style=SMALL)
            y += 16
        for name, value in bars:
            color = theme.shortcut if is_ours(name) else theme.stages[1]
            drawing.text(left - 6, y + 11, name, style=f"{END} {SMALL}")
            drawing.rectangle(left, y + 2, width * value / most, ROW - 5, color)
            drawing.text(left + width + 45, y + 11, in_figures(value), style=f"{END} {SMALL}")
            y += ROW
        if limit:
            at = left + width * limit / most
            drawing.path(f"M{at:.1f},{y - ROW * len(bars):.1f}V{y:.1f}", theme.stride, 'stroke-dasharray="3 2"')
        y += 8
    return y + 8 - top


def in_figures(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def is_ours(name: str) -> bool:
    return bool(re.search(r"\bours\b|resnet[_-]core", name))


def in_words(record: dict[str, Any]) -> str:
    """The picture for those who do not see it: of each panel our bars, and the best of all."""
    found = []
    for title, groups in panels(record):
        bars = [bar for _, those, _ in groups for bar in those]
        best = (min if "seconds" in title else max)(bars, key=lambda bar: bar[1])
        shown = dict([*(bar for bar in bars if is_ours(bar[0])), best])
        found.append(f"{title}: {', '.join(f'{name} {in_figures(value)}' for name, value in shown.items())}")
    return "; ".join(found)
