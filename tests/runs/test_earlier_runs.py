"""A run's folder of an earlier version stays readable: this one was written by commit e831412, before the rooms."""

import json
import shutil
from pathlib import Path

import pytest

from resnet_core.runs import load_run, read_recipe, read_result
from resnet_core.runs.folder import RunFolder

FOLDER = Path(__file__).parent / "fixtures" / "run_of_e831412"
WORDS = (
    *("--train.epochs", 1, "--schedule.warmup-epochs", 0, "--data.global-batch", 256),
    *("--data.crop-padding", 2, "--optimizer.weight-decay", 5e-4),  # as the recipe had them then
)


@pytest.fixture
def earlier(tmp_path):
    return Path(shutil.copytree(FOLDER, tmp_path / "run"))


def test_the_run_of_an_earlier_version_is_read_and_evaluates_as_it_did(earlier, cli):
    recipe, result = read_recipe(earlier), read_result(earlier)
    assert (recipe.model.name, recipe.data.global_batch, result["steps"]) == ("cifar_resnet20", 256, 5)
    assert RunFolder(earlier).recorded_recipe()[0] == recipe
    assert load_run(earlier).evaluate()["top1"] == pytest.approx(result["top1"], abs=0.01)
    scores = json.loads(cli("evaluate", earlier, "--json").stdout)
    assert scores["top1"] == pytest.approx(result["top1"], abs=0.01)


def test_the_run_of_an_earlier_version_is_finished_and_another_recipe_is_refused(earlier, cli):
    again = cli("train", "digits", "--out", earlier, *WORDS)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"{earlier} was finished before: top-1 ")
    refused = cli("train", "digits", "--out", earlier, *WORDS, "--seed", 1)
    assert "seed is 0 there and 1 here" in refused.stderr
