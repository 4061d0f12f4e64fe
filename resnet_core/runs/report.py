"""One page to look into a finished run: curves, time, confusions, classes, mistakes with heat maps, data, versions."""

from __future__ import annotations

import base64
import io
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_core.data import ImageFiles
from resnet_core.foundation.atomic import replace_file
from resnet_core.inference.explain import captum_attr, denormalized, heat_maps, overlaid
from resnet_core.inference.predictions import PredictionRecord, Predictions, class_scores
from resnet_core.recipes.experiment import Experiment
from resnet_core.runs.curves import PANELS, Panel, draw, records_of
from resnet_core.runs.folder import RunFolder
from resnet_core.runs.training import experiment_of, trained
from resnet_core.train import Trainer
from resnet_core.train.evaluate import evaluate
from resnet_core.train.metrics import classification_sums, scores_to_hide

MOST_CLASSES_IN_A_TABLE = 20
MOST_MISTAKES = 12
MOST_CONFUSIONS = 10
TEMPLATE = "report.html"
OTHER = "evaluation, checkpoints, and steps that no record covers"
MARK = '<meta name="generator" content="resnet-core report">'


def write_report(out: str | Path, path: str | Path | None = None) -> Path:
    """Writes the report of a finished run, by default `report.html` in its folder, and returns its path.

    The network is evaluated again on the run's data. Raises what `load_run` raises, and ValueError for a file that
    `write_report` did not write and without the extra `explain`.
    """
    folder = RunFolder(out)
    page = Path(path) if path else folder.path / TEMPLATE
    check_page(page)
    template = load_template()
    captum_attr()  # before any work

    experiment = experiment_of(folder)
    trainer = trained(folder, experiment)
    scores, predictions = predictions_of(trainer)
    records, environment = records_of(folder.path), folder.read_environment()
    names, hidden = experiment.dataset.class_names, scores_to_hide(len(experiment.dataset.class_names))
    confusion = predictions.confusion(len(names))

    text = template.render(
        run=folder.path.resolve().name,
        recipe=experiment.recipe,
        scores=scores,
        hidden=hidden,
        result=folder.read_result() or {},
        curves=[as_picture(draw({"": records}, panels=[panel]), "svg") for panel in panels_without(hidden)],
        times=times(records, experiment, folder.read_result() or {}),
        names=names,
        confusion=confusion.tolist() if len(names) <= MOST_CLASSES_IN_A_TABLE else None,
        confusion_picture=None if len(names) <= MOST_CLASSES_IN_A_TABLE else picture_of(confusion),
        confusions=confusions(confusion, names),
        classes=class_scores(confusion, names),
        mistakes=mistakes(predictions, trainer, experiment),
        num_mistakes=len(predictions.mistakes()),
        data_lines=[*experiment.data_lines, *folder.data_changes(experiment)],
        environment=environment,
        command=shlex.join(environment.get("command", [])),
    )
    replace_file(page, text.encode(errors="surrogateescape"))
    return page


def panels_without(hidden: Collection[str]) -> list[Panel]:
    """The panels of the curves without the lines of these scores."""
    return [
        (title, scale, {label: line for label, line in lines.items() if line[1] not in hidden})
        for title, scale, lines in PANELS
    ]


def check_page(page: Path) -> None:
    """Raises ValueError for a file that the report would replace without having written it."""
    if page.suffix.lower() != ".html":
        raise ValueError(f"{page} must end in .html; name it {page.stem}.html")
    if page.is_file() and MARK.encode() not in page.read_bytes():
        raise ValueError(f"{page} exists and was not written by `report`; choose another file with --out")


def load_template() -> Any:
    """The page's template, in which every value from outside is escaped. Raises ValueError without jinja2."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError as error:
        raise ValueError("a report needs jinja2: pip install 'resnet-core[explain]'") from error
    source = (resources.files("resnet_core.runs") / TEMPLATE).read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )


def predictions_of(trainer: Trainer) -> tuple[dict[str, float], Predictions]:
    """A trained network's scores and predictions on its evaluation data."""
    record = PredictionRecord()

    def score(logits: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        record.add(logits, labels)
        return classification_sums(logits, labels)

    scores = evaluate(trainer.model.eval(), trainer.eval_loader, score, trainer.config, trainer.world)
    return scores, record.gathered(trainer.world)


def times(
    records: Sequence[Mapping[str, Any]], experiment: Experiment, result: Mapping[str, float]
) -> list[tuple[str, float, float]]:
    """What the run spent its time on: name, seconds, share.

    A record's speed is that of the steps since the last record or evaluation.
    """
    spent = {"computing": 0.0, "waiting for data": 0.0, "waiting for other processes": 0.0}
    before = 0
    for record in records:
        steps, before = record["step"] - before, record["step"]
        if record["event"] != "train":
            continue
        seconds = steps * experiment.recipe.data.global_batch / record["samples_per_second"]
        waits = {"waiting for data": record["data_wait"], "waiting for other processes": record["communication_wait"]}
        for name, share in (waits | {"computing": 1 - sum(waits.values())}).items():
            spent[name] += seconds * share

    spent[OTHER] = max(0.0, result["seconds"] - sum(spent.values()))
    total = sum(spent.values())
    return [(name, seconds, seconds / total) for name, seconds in spent.items()]


def confusions(confusion: Tensor, names: Sequence[str]) -> list[tuple[str, str, int]]:
    """The most frequent confusions: class, what it was taken for, how often."""
    others = confusion - torch.diag(confusion.diagonal())
    most = others.flatten().argsort(descending=True, stable=True)[:MOST_CONFUSIONS].tolist()
    pairs = [divmod(index, len(names)) for index in most]
    return [(names[row], names[column], int(others[row, column])) for row, column in pairs if others[row, column]]


def mistakes(predictions: Predictions, trainer: Trainer, experiment: Experiment) -> list[dict[str, Any]]:
    """The most confident mistakes: the image, where it was seen as another class, both classes, the file."""
    dataset = experiment.dataset
    shown = []
    for index in predictions.mistakes()[:MOST_MISTAKES]:
        inputs = dataset.transform.of_images(dataset.test.take([index]))
        seen = int(predictions.classes[index])
        (heat,) = heat_maps(trainer.model, inputs.to(trainer.world.device), [seen]).cpu()
        pixels = denormalized(inputs[0], dataset.transform)
        shown.append(
            {
                "image": as_png(pixels.permute(1, 2, 0).expand(-1, -1, 3)),
                "heat": as_png(overlaid(pixels, heat)),
                "seen": dataset.class_names[seen],
                "probability": float(predictions.probabilities[index]),
                "label": dataset.class_names[int(predictions.labels[index])],
                "file": os.fsdecode(dataset.test.names[index])
                if isinstance(dataset.test, ImageFiles)
                else f"test image {index}",
            }
        )
    return shown


def picture_of(confusion: Tensor) -> str:
    """A large confusion matrix, a dot of colour for each pair of classes; rows are shares of their class."""
    from matplotlib.figure import Figure

    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="number of the class that was seen", ylabel="number of the image's class")
    bar = figure.colorbar(image, ticks=[0, 0.1**0.5, 0.25**0.5, 0.5**0.5, 1])
    bar.ax.set_yticklabels(["0%", "10%", "25%", "50%", "100%"])
    return as_picture(figure, "png")


def as_picture(figure: Any, format: str) -> str:
    """A figure as a data URI."""
    file = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if format == "svg" else None
    figure.savefig(file, format=format, dpi=150, metadata=metadata)
    return data_uri(file.getvalue(), "svg+xml" if format == "svg" else format)


def as_png(pixels: Tensor) -> str:
    """An image `[H, W, 3]` in 0..1 as a data URI."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels.clamp(0, 1).contiguous().numpy(), format="png")
    return data_uri(file.getvalue(), "png")


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
