"""The curves of one run, or of several in one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_core.foundation.atomic import replace_file
from resnet_core.runs.folder import differences_of, read_recipe
from resnet_core.train.report import read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THIN: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.5}
SOLID: dict[str, Any] = {"linewidth": 1.6}

# Title, scale of the vertical axis, label -> (event, key) of the records and the line's style.
Panel = tuple[str, str, dict[str, tuple[str, str, dict[str, Any]]]]
PANELS: list[Panel] = [
    ("loss", "log", {"training": ("train", "loss", THIN), "evaluation": ("eval", "loss", SOLID)}),
    ("accuracy in evaluation", "linear", {"top-1": ("eval", "top1", SOLID), "top-5": ("eval", "top5", THIN)}),
    ("learning rate", "linear", {"learning rate": ("train", "lr", SOLID)}),
]
PALETTE = 10  # distinct colours; more runs take colours from a rainbow
MOST_SETTINGS = 3  # in a label
CHARACTERS = 150  # across the picture

# Suffix -> the field of such a file that names its maker.
MAKER_FIELD = {".png": "Software", ".pdf": "Creator", ".svg": "Creator"}
MAKER = "resnet-core plot"


def plot(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Draws loss, accuracy and learning rate of runs into one picture, and returns its path.

    The path is `out`, or by default `curves.png`: in the run's folder for one run, in the current folder for several.
    Raises ValueError for a folder that is not a run's or has no records, for a file that cannot be written or that
    `plot` did not draw, and without matplotlib (the extra `plot`).
    """
    # Where to draw.
    own = folders[0] / "curves.png" if len(folders) == 1 else None
    path = out or own or Path("curves.png")
    suffix = path.suffix.lower()
    if suffix not in MAKER_FIELD:
        raise ValueError(f"{path} cannot be drawn; name a file that ends in {' or '.join(MAKER_FIELD)}")
    if path != own and path.is_file() and MAKER.encode() not in path.read_bytes():
        raise ValueError(f"{path} exists and was not drawn by `plot`; choose another file with --out")

    # The picture, complete before anything is written.
    labels = run_labels(folders)
    figure = draw(dict(zip(labels, map(records_of, folders), strict=True)))
    picture = io.BytesIO()
    figure.savefig(picture, format=suffix[1:], dpi=120, metadata={MAKER_FIELD[suffix]: MAKER})

    try:
        replace_file(path, picture.getvalue())
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another file with --out") from error
    return path


def records_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    records = list(read_records(path))
    if not records:
        raise ValueError(f"{path} holds no records yet; train first")
    return records


def run_labels(folders: Sequence[Path]) -> list[str]:
    """Labels of the runs: the settings that differ if there are few of them, otherwise the folders' names."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(map(str, folders))

    # Setting -> its value in the first run, for each that differs in some run.
    recipes = [read_recipe(folder) for folder in folders]
    differences = [differences_of(recipes[0], recipe) for recipe in recipes]
    firsts = {key: value for found in differences for key, value, _ in found}
    if not 1 <= len(firsts) <= MOST_SETTINGS:
        return names

    settings = [firsts | {key: value for key, _, value in found} for found in differences]
    labels = [", ".join(f"{key} {str(value) or 'none'}" for key, value in each.items()) for each in settings]
    return [
        label if labels.count(label) == 1 else f"{label} ({name})" for label, name in zip(labels, names, strict=True)
    ]


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]], panels: Sequence[Panel] = PANELS) -> Figure:
    """The panels, with each run in its own colour. Raises ValueError without matplotlib."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("plotting needs matplotlib: pip install 'resnet-core[plot]'") from error

    # Room for the panels, and below them for the runs' labels.
    several = len(runs) > 1
    columns = max(1, min(len(runs), CHARACTERS // (max(map(len, runs)) + 8)))
    rows = -(-len(runs) // columns) if several else 0
    figure = Figure(figsize=(4 * len(panels), 3.6 + 0.22 * rows), layout="constrained")

    # A colour for each run, a style for each kind of line.
    rainbow = colormaps["turbo"].resampled(len(runs))
    colours = [f"C{number}" if len(runs) <= PALETTE else rainbow(number) for number in range(len(runs))]
    for axes, (title, scale, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, (event, key, style) in lines.items():
            axes.plot([], [], color="0.3" if several else colours[0], label=label, **style)
            for colour, records in zip(colours, runs.values(), strict=True):
                points = [(record["epoch"], record[key]) for record in records if record["event"] == event]
                axes.plot([epoch for epoch, _ in points], [value for _, value in points], color=colour, **style)
        axes.set(xlabel="epoch", title=title, yscale=scale)
        axes.grid(alpha=0.3)
        axes.legend()

    if several:
        handles = [axes.plot([], [], color=colour, linewidth=3)[0] for colour in colours]
        figure.legend(handles, list(runs), loc="outside lower center", ncols=columns, frameon=False)
    return figure
