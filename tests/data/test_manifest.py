"""Which data a run was trained on: known by the bytes of its files, and what changed is named."""

import json
import os

import pytest
import torch

from resnet_core.data import Dataset, FolderOptions, ImageTransform, Split, identity, load_dataset
from resnet_core.data.check import check_images
from resnet_core.data.images import HASHES
from resnet_core.data.manifest import changes, content, files_of, from_csv, read_hashes, to_csv
from resnet_core.runs import load_run
from resnet_core.runs.folder import RunFolder
from tests.data.test_folders import write_images

HOUR = 3600


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "data" / "train", {"cat": 4, "dog": 4})
    write_images(tmp_path / "data" / "val", {"cat": 1, "dog": 1}, start=1)
    return tmp_path / "data"


def files(folder):
    return files_of(load_dataset("image_folder", str(folder)))


def touch(path, seconds=HOUR):
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + seconds))


def swap(path):
    """Other bytes, of the same size and time."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_small_set_is_known_by_its_bytes_whatever_its_times(folder):
    before = files(folder)
    assert [each.path for each in before[:2]] == ["train/cat/0.png", "train/cat/1.png"]
    touch(folder / "train" / "cat" / "0.png")
    assert content(files(folder)) == content(before)
    assert changes(before, files(folder)) == []
    swap(folder / "train" / "cat" / "0.png")
    (folder / "val" / "dog" / "0.png").rename(folder / "val" / "dog" / "new.png")
    assert content(files(folder)) != content(before)
    assert changes(before, files(folder)) == [
        "1 file is gone: val/dog/0.png",
        "1 file is new: val/dog/new.png",
        "1 file is changed: train/cat/0.png",
    ]


def test_a_large_set_is_known_by_sizes_and_times_until_data_check_has_hashed_it(folder, monkeypatch):
    monkeypatch.setattr("resnet_core.data.manifest.HASHED_BELOW", 0)
    unhashed = files(folder)
    assert not any(each.sha256 for each in unhashed)
    touch(folder / "train" / "cat" / "0.png")
    assert changes(unhashed, files(folder)) == ["1 file is changed: train/cat/0.png"]

    check_images(folder)
    assert read_hashes(folder / "val").keys() == {"cat/0.png", "dog/0.png"}
    hashed = files(folder)
    assert all(each.sha256 for each in hashed)
    assert changes(unhashed, hashed) == ["1 file is changed: train/cat/0.png"]
    touch(folder / "train" / "cat" / "1.png")  # its hash holds no longer
    assert changes(hashed, files(folder)) == ["1 file is changed: train/cat/1.png"]
    check_images(folder)
    assert changes(hashed, files(folder)) == []


def test_files_are_kept_as_a_table_whatever_their_names(folder):
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / os.fsdecode(b'caf\xe9, "x"\n.png'))
    found = files(folder)
    assert from_csv(to_csv(found)) == found
    (folder / HASHES).write_bytes(b"path\nrubbish\n")
    assert files(folder) == found


def test_data_in_memory_have_no_files():
    split = Split(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))
    transform = ImageTransform(resize_size=4, crop_size=4, mean=(0.5,), std=(0.5,))
    dataset = Dataset(train=split, test=split, class_names=("a", "b"), transform=transform)
    assert files_of(dataset) == ()
    assert list(identity(dataset)) == ["classes", "training images", "test images", "sha256"]


TINY = (
    *("--model.name", "cifar_resnet20", "--model.weights", "", "--data.train-size", 8, "--data.eval-resize", 8),
    *("--data.eval-size", 8, "--schedule.warmup-epochs", 0, "--data.global-batch", 4, "--optimizer.lr", 0.001),
    *("--data.workers", 0, "--run.device", "cpu", "--train.epochs"),
)


@pytest.fixture
def train(folder, tmp_path, cli):
    """Trains on the folder for a number of epochs; returns what the command returns."""

    def run(epochs, *words):
        return cli("train", "finetune", "--data.path", folder, "--out", tmp_path / "run", *TINY, epochs, *words)

    return run


@pytest.fixture
def stopped(train, folder, tmp_path, monkeypatch):
    """A run that was stopped after its first epoch."""
    real = RunFolder.write_result
    monkeypatch.setattr(RunFolder, "write_result", lambda *arguments: (_ for _ in ()).throw(OSError("stopped")))
    assert train(1).returncode == 2
    monkeypatch.setattr(RunFolder, "write_result", real)
    return tmp_path / "run"


def test_a_run_names_the_files_that_changed_and_how_to_go_on(stopped, train, folder):
    assert len(from_csv((stopped / "data.csv").read_bytes())) == 10
    (folder / "train" / "cat" / "1.png").unlink()
    swap(folder / "train" / "dog" / "0.png")
    refused = train(1)
    assert refused.returncode == 2
    assert (
        "holds a run on other data (training images: 8 there and 7 here; 1 file is gone: train/cat/1.png; 1 file is "
        "changed: train/dog/0.png); correct --data.path, or choose another folder with --out; --allow-changes continues"
    ) in refused.stderr
    assert train(1, "--allow-changes").returncode == 0
    assert train(1).stdout.startswith(f"{stopped} was finished before")


def test_a_run_whose_table_was_lost_still_knows_that_its_data_changed(stopped, train, folder):
    (stopped / "data.csv").unlink()
    swap(folder / "train" / "dog" / "0.png")
    assert "(the files differ, and data.csv, which would say how, is missing or was changed)" in train(1).stderr


def test_a_run_of_an_earlier_version_which_recorded_no_files_continues(stopped, train, monkeypatch):
    real = RunFolder.recorded_recipe

    def as_before(self):
        recipe, data = real(self)
        return recipe, {key: value for key, value in data.items() if key != "content"}

    monkeypatch.setattr(RunFolder, "recorded_recipe", as_before)
    assert train(1).returncode == 0


def test_what_an_exclude_list_leaves_is_part_of_the_datas_identity(stopped, train, tmp_path, cli, monkeypatch):
    (tmp_path / "list").write_text("train/cat/1.png\n")
    refused = train(1, "--data.exclude", tmp_path / "list")
    assert "training images: 8 there and 7 here; 1 file is gone: train/cat/1.png" in refused.stderr
    (tmp_path / "list").write_text("# nothing\n")
    monkeypatch.chdir(tmp_path)
    assert train(1, "--data.exclude", "list").returncode == 0
    monkeypatch.chdir("/")  # from where the run still finds its list
    assert cli("evaluate", stopped).returncode == 0


def test_a_share_is_recorded_in_the_run(folder, tmp_path, cli):
    words = ("train", "finetune", "--data.path", folder / "train", "--out", tmp_path / "share", *TINY, 1)
    refused = cli(*words, "--data.val-share", 0.25, "--out", folder / "train" / "run").stderr
    assert "where each folder is a class of images; choose another folder with --out" in refused
    trained = cli(*words, "--data.val-share", 0.25)
    assert trained.returncode == 0, trained.stderr
    assert "data        6 images of 2 classes to train on, 2 images of 2 classes to evaluate on" in trained.stdout
    assert "left over   2 of the 6 images" in trained.stdout
    assert "val_share = 0.25" in (tmp_path / "share" / "recipe.toml").read_text()
    assert "--data.val-seed is 0 there and 1 here" in cli(*words, "--data.val-share", 0.25, "--data.val-seed", 1).stderr
    assert json.loads(cli("evaluate", tmp_path / "share", "--json").stdout)["count"] == 2


def test_a_run_whose_classes_were_renamed_is_not_evaluated_under_other_names(folder, train, tmp_path):
    assert train(1).returncode == 0
    assert load_run(tmp_path / "run").evaluate()["count"] == 2
    for part in ("train", "val"):
        (folder / part / "dog").rename(folder / part / "ant")
    with pytest.raises(
        ValueError, match=r"does not fit .*\(classes cat, dog there and ant, cat here\); correct data.path"
    ):
        load_run(tmp_path / "run")


def test_bits_go_with_the_weights(folder):
    dataset = load_dataset("image_folder", str(folder), FolderOptions(bits=12))
    assert (dataset.train.bits, dataset.test.bits, dataset.transform.bits) == (12, 12, 12)
