"""`resnet-core report RUN`: one page, without requests, on which every name from outside is text."""

import json
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from resnet_core.data import DataConfig
from resnet_core.recipes import RECIPES
from resnet_core.recipes.experiment import load
from resnet_core.runs import load_run, read_recipe, run, write_report
from resnet_core.runs.report import confusions, panels_without, picture_of, predictions_of, times
from resnet_core.train import TrainConfig
from resnet_core.train.schedules import ScheduleConfig

HOSTILE = ('<script>alert("1")', "$x$ & {{ 7 * 7 }}", "' onload='猫\n")


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A finished run on images whose classes and files have names that a page must not take for its own code."""
    folder = tmp_path_factory.mktemp('<img src="x" onerror="1">')
    for part, count in (("train", 4), ("test", 3)):
        for number, name in enumerate(HOSTILE):
            (folder / "data" / part / name).mkdir(parents=True)
            for image in range(count):
                Image.new("RGB", (8, 8), (90 * number, 50 * image, 0)).save(
                    folder / "data" / part / name / f"<b>{image}.png"
                )
    digits = RECIPES["digits"]
    data = DataConfig(name="image_folder", path=str(folder / "data"), global_batch=4, train_size=16)
    recipe = replace(
        digits, data=replace(data, eval_resize=16, eval_size=16), train=TrainConfig(epochs=1), schedule=ScheduleConfig()
    )
    run(replace(recipe, run=replace(digits.run, log_every_steps=1)), folder / "run")
    return folder / "run"


class Page(HTMLParser):
    """The tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(hostile_run):
    return Page(write_report(hostile_run).read_text())


def test_names_from_outside_are_text_and_nothing_is_requested(page, hostile_run):
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href"):
            assert attributes.get(key, "data:image/").startswith("data:image/")
    for name in HOSTILE:
        assert name in page.text
    assert "<b>0.png" in page.text or "<b>1.png" in page.text or "<b>2.png" in page.text
    assert str(hostile_run.parent / "data") in page.text


def test_the_page_has_the_runs_own_numbers(page, hostile_run):
    result = json.loads((hostile_run / "result.json").read_text())
    assert f"{100 * result['top1']:.2f}%" in page.text
    assert "top-5" not in page.text  # of three classes
    assert [list(lines) for _, _, lines in panels_without(("top5",))][1] == ["top-1"]
    assert "9 images of 3 classes to evaluate on" in page.text
    mistakes = round(9 * (1 - result["top1"]))
    assert sum(attributes.get("alt") == "its heat map" for _, attributes in page.tags) == mistakes
    assert sum(attributes.get("alt", "").startswith("curve") for _, attributes in page.tags) == 3


def test_predictions_agree_with_the_scores(hostile_run):
    scores, predictions = predictions_of(load_run(hostile_run))
    confusion = predictions.confusion(3)
    assert confusion.sum(1).tolist() == [3, 3, 3]
    assert int(confusion.diagonal().sum()) == round(scores["top1"] * scores["count"])
    assert len(predictions.mistakes()) == 9 - int(confusion.diagonal().sum())


def test_confusions_are_listed_by_their_number():
    confusion = torch.tensor([[1, 2, 0], [1, 1, 0], [0, 1, 0]])
    assert confusions(confusion, "abc") == [("a", "b", 2), ("b", "a", 1), ("c", "b", 1)]


def test_the_parts_of_the_time_sum_to_the_runs_seconds(hostile_run):
    experiment = load(read_recipe(hostile_run))
    records = [
        {"event": "train", "step": 2, "samples_per_second": 4.0, "data_wait": 0.25, "communication_wait": 0.5},
        {"event": "eval", "step": 2},
        {"event": "train", "step": 3, "samples_per_second": 1.0, "data_wait": 0.0, "communication_wait": 0.0},
    ]
    found = {name: seconds for name, seconds, _ in times(records, experiment, {"seconds": 10})}
    assert list(found.values()) == [0.25 * 2 + 4, 0.25 * 2, 0.5 * 2, 4]

    # Step 3 is in no record.
    records[1]["step"] = 3
    records[2]["step"] = 4
    assert [seconds for _, seconds, _ in times(records, experiment, {"seconds": 10})] == list(found.values())


def test_a_thousand_classes_are_a_picture():
    assert picture_of(torch.eye(1000, dtype=torch.int64)).startswith("data:image/png;base64,")


def test_no_other_file_is_replaced_and_what_is_missing_is_named(hostile_run, cli, tmp_path, monkeypatch):
    (tmp_path / "mine.html").write_text("mine")
    for words, message in [
        ((hostile_run, "--out", tmp_path / "mine.html"), "exists and was not written by `report`; choose another"),
        ((hostile_run, "--out", "page.txt"), "page.txt must end in .html; name it page.html"),
        ((tmp_path,), "is not a run's folder: it has no recipe.toml"),
    ]:
        finished = cli("report", *words)
        assert finished.returncode == 2
        assert message in finished.stderr
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "a report needs jinja2: pip install 'resnet-core[explain]'" in cli("report", hostile_run).stderr
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_data_that_changed_since_the_training_are_named_and_data_that_moved_too(hostile_run, cli, tmp_path):
    data, name = hostile_run.parent / "data", "<b>0.png"
    Image.new("RGB", (8, 8), "red").save(data / "train" / HOSTILE[0] / name)
    page = Page(write_report(hostile_run, tmp_path / "page.html").read_text())
    assert "since the run was trained: 1 file is changed: " in page.text
    evaluated = cli("evaluate", hostile_run)
    assert evaluated.returncode == 0
    (line,) = [line for line in evaluated.stderr.splitlines() if line.startswith("changed ")]
    assert "since the run was trained: 1 file is changed: " in line
    data.rename(data.with_name("moved"))
    moved = cli("report", hostile_run).stderr
    assert "data does not exist; name the folder" in moved
    assert "run/recipe.toml: correct data.path there if the data moved" in moved
