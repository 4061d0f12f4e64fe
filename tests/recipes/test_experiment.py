"""One road for an experiment: what it needs is loaded once, in a run as in a dry run."""

import sys

import pytest
import torch

import resnet_core
from resnet_core.cli.main import main
from resnet_core.data import Dataset, ImageTransform, Split, dataset_of, identity
from resnet_core.recipes import RECIPES, make_trainer
from resnet_core.recipes.experiment import load
from resnet_core.train import Trainer
from resnet_core.weights.files import read_file

SHORT = ("--train.epochs", "1", "--schedule.warmup-epochs", "0", "--data.global-batch", "256")


@pytest.fixture
def counted(monkeypatch):
    """Counts the calls of functions, wherever in the package they are called from: name -> times."""
    calls = {}

    def count(function):
        def counting(*arguments, **options):
            calls[function.__name__] = calls.get(function.__name__, 0) + 1
            return function(*arguments, **options)

        modules = [module for name, module in sys.modules.items() if name.startswith("resnet_core")]
        for owner in [*modules, Trainer]:
            if vars(owner).get(function.__name__) is function:
                monkeypatch.setattr(owner, function.__name__, counting)

    for function in (dataset_of, identity, read_file, Trainer.restore):
        count(function)
    return calls


@pytest.fixture
def start(tmp_path):
    """Anybody's file of weights to start from, which says nothing of itself."""
    path = tmp_path / "start.pth"
    torch.save({"model": resnet_core.cifar_resnet20(in_channels=1).state_dict()}, path)
    return path


def test_a_run_loads_its_data_and_reads_its_first_weights_once(start, counted, tmp_path):
    words = ["train", "digits", "--out", str(tmp_path / "run"), "--model.weights", str(start), *SHORT]
    assert main(words) == 0
    assert counted == {"dataset_of": 1, "identity": 1, "read_file": 1, "restore": 1}


def test_a_finished_run_is_found_finished_without_its_first_weights(start, counted, tmp_path):
    words = ["train", "digits", "--out", str(tmp_path / "run"), "--model.weights", str(start), *SHORT]
    assert main(words) == 0
    start.unlink()
    counted.clear()
    assert main(words) == 0
    assert counted == {"dataset_of": 1, "identity": 1}


def test_a_dry_run_loads_what_a_run_would_check(start, counted, tmp_path):
    words = ["train", "digits", "--out", str(tmp_path / "run"), "--model.weights", str(start), "--dry-run", *SHORT]
    assert main(words) == 0
    assert counted == {"dataset_of": 1, "read_file": 1}
    assert not (tmp_path / "run").exists()


def test_a_launcher_loads_once_before_it_starts_processes(counted, tmp_path, monkeypatch):
    launched = []
    monkeypatch.setattr("resnet_core.cli.training.launch", lambda *arguments: launched.append(arguments) or 0)
    assert main(["train", "digits", "--out", str(tmp_path / "run"), "--processes", "2", *SHORT]) == 0
    assert len(launched) == 1
    assert counted == {"dataset_of": 1}


def test_an_experiment_computes_once_what_it_is_asked_for(counted):
    experiment = load(RECIPES["digits"])
    assert experiment.data_identity is experiment.data_identity
    assert experiment.skeleton is experiment.skeleton
    assert experiment.model_arguments == {"num_classes": 10, "in_channels": 1}
    assert counted == {"dataset_of": 1, "identity": 1}


def test_a_dataset_of_your_own_is_trained_on_in_place_of_the_recipes(counted):
    images = Split(torch.zeros(64, 3, 12, 12, dtype=torch.uint8), torch.arange(64) % 4)
    transform = ImageTransform(resize_size=12, crop_size=12)
    dataset = Dataset(train=images, test=images, class_names=("a", "b", "c", "d"), transform=transform)
    trainer = make_trainer(RECIPES["digits"], dataset=dataset)
    assert (trainer.num_steps, trainer.model.fc.out_features, trainer.model.conv1.in_channels) == (30, 4, 3)
    assert trainer.evaluate()["count"] == 64
    assert "dataset_of" not in counted
