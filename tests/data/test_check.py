"""`resnet-core data check`: every image decoded, what cannot be used named, and a list that training applies."""

import json
import os
import shutil

import pytest
from PIL import Image

from resnet_core.data.check import check_images
from resnet_core.data.images import HASHES
from tests.data.test_folders import write_images

pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded:DeprecationWarning")  # Python 3.12, of a fork
HERE = ("--workers", 0)  # in this process


@pytest.fixture
def folder(tmp_path):
    """Two damaged images, and one to train on that is also evaluated."""
    write_images(tmp_path / "data" / "train", {"cat": 12, "dog": 12})
    write_images(tmp_path / "data" / "val", {"cat": 2, "dog": 2}, start=1)
    (tmp_path / "data" / "train" / "cat" / "3.png").write_bytes(b"")
    (tmp_path / "data" / "val" / "dog" / "1.png").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "data" / "val" / "dog" / ".hidden.png").touch()
    shutil.copy(tmp_path / "data" / "val" / "cat" / "0.png", tmp_path / "data" / "train" / "dog" / "5.png")
    return tmp_path / "data"


def test_a_good_folder_is_good(tmp_path, cli):
    write_images(tmp_path, {"cat": 2})
    checked = cli("data", "check", tmp_path, *HERE)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.startswith("2 images, decoded by Pillow ")
    assert checked.stdout.endswith(": 0 cannot be used\n")
    assert len((tmp_path / HASHES).read_text().splitlines()) == 3
    assert cli("data", "check", tmp_path, *HERE).stdout == checked.stdout  # which does not name that file


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_used_is_listed_with_its_reason(folder, cli, workers):
    checked = cli("data", "check", folder, "--workers", workers)
    assert checked.returncode == 1
    damaged, page, twice, skipped, total, in_both, remedy = checked.stdout.splitlines()
    assert damaged == "train/cat/3.png: it is empty"
    assert page == "val/dog/1.png: it is a web page"
    assert twice == "train/dog/5.png: the same bytes as val/cat/0.png"
    assert skipped == "skipped: hidden names: 1 (val/dog/.hidden.png)"
    assert (total[:9], total[-17:]) == ("28 images", " 2 cannot be used")
    assert in_both == "1 image is in the data more than once"
    assert remedy.endswith(" --write-exclude exclude.txt")


TRAIN = ("train", "finetune", "--model.name", "cifar_resnet20", "--model.weights", "", "--dry-run")


def test_the_list_to_exclude_is_what_training_leaves_out(folder, tmp_path, cli):
    listed = tmp_path / "exclude.txt"
    found = json.loads(cli("data", "check", folder, *HERE, "--json", "--write-exclude", listed).stdout)
    assert [each["path"] for each in found["unreadable"]] == ["train/cat/3.png", "val/dog/1.png"]
    assert [each["path"] for each in found["duplicates"]] == ["train/dog/5.png"]
    assert (found["images"], found["decoder"][:7]) == (28, "Pillow ")

    planned = cli(*TRAIN, "--data.path", folder, "--data.exclude", listed, "--data.global-batch", 8)
    assert "22 images of 2 classes to train on, 3 images of 2 classes" in planned.stdout
    assert "images on the exclude list: 3 (3 .png)" in planned.stdout
    assert cli("data", "check", folder, "--write-exclude", listed, *HERE).returncode == 1  # written again


def test_damaged_headers_of_a_small_set_are_named_before_training(folder, tmp_path, cli):
    for number in (7, 8):
        (folder / "train" / "dog" / f"{number}.png").write_bytes(b"%PDF")
    refused = cli(*TRAIN, "--data.path", folder, "--out", tmp_path / "run")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"resnet-core: 4 images cannot be used ({folder}/train/cat/3.png: it is empty; ")
    assert (
        "dog/8.png: it is a PDF and 1 more); replace or remove them, or let `resnet-core data check` find"
        in refused.stderr
    )
    assert not (tmp_path / "run").exists()


def test_headers_of_a_large_set_are_left_to_training(folder, cli, monkeypatch):
    monkeypatch.setattr("resnet_core.data.check.MOST_HEADERS", 27)
    assert cli(*TRAIN, "--data.path", folder, "--data.global-batch", 8).returncode == 0


def test_a_file_that_is_not_such_a_list_is_not_overwritten(folder, tmp_path, cli):
    (tmp_path / "notes.txt").write_text("mine")
    refused = cli("data", "check", folder, *HERE, "--write-exclude", tmp_path / "notes.txt")
    assert (refused.returncode, refused.stdout, (tmp_path / "notes.txt").read_text()) == (2, "", "mine")
    assert "exists and is not such a list; choose another file with --write-exclude" in refused.stderr
    refused = cli("data", "check", folder, *HERE, "--write-exclude", tmp_path / "there" / "list.txt")
    assert "there is not a folder; create it, or choose another file" in refused.stderr
    assert not (folder / HASHES).exists()


def test_names_that_a_list_can_hold_and_one_that_it_cannot(tmp_path, cli):
    write_images(tmp_path / "data", {"#1": 3, "cat": 2})
    for name in ("#1/0.png", os.fsdecode(b"cat/caf\xe9.png")):
        (tmp_path / "data" / name).write_bytes(b"")
    words = ("data", "check", tmp_path / "data", *HERE, "--write-exclude", tmp_path / "list")
    assert cli(*words, "--json").returncode == 1
    options = ("--data.path", tmp_path / "data", "--data.exclude", tmp_path / "list", "--data.val-share", 0.5)
    planned = cli(*TRAIN, *options, "--data.global-batch", 2).stdout
    assert "images on the exclude list: 2 (#1/0.png, 'cat/caf\\udce9.png'...)" in planned
    (tmp_path / "data" / "cat" / "a\nb.png").write_bytes(b"")
    assert "has a line break in its name, which a list cannot hold; rename that file" in cli(*words).stderr


def test_a_list_in_csv_is_checked_by_its_splits(folder, cli):
    (folder / "list.csv").write_text(
        "path,label,split\ntrain/dog/5.png,dog,train\ntrain/cat/1.png,cat,train\nval/cat/0.png,cat,val\n"
    )
    checked = cli("data", "check", folder / "list.csv", *HERE)
    assert checked.stdout.startswith("train/dog/5.png: the same bytes as val/cat/0.png\n3 images, ")
    assert "does not exist; name the folder of the images or a CSV list" in cli("data", "check", "nowhere").stderr
    picture = folder / "val" / "cat" / "0.png"
    assert "0.png is a file; name the folder of the images or a CSV list" in cli("data", "check", picture).stderr
    (folder / "all.zip").touch()
    assert "all.zip is a file; unpack it, and name the folder" in cli("data", "check", folder / "all.zip").stderr


def test_16_bit_files_are_checked_as_they_are_trained_on(tmp_path, cli):
    (tmp_path / "cat").mkdir()
    Image.new("I;16", (4, 4), 4000).save(tmp_path / "cat" / "0.png")
    words = ("data", "check", tmp_path, *HERE)
    assert "set --data.bits 12 if white is 4095" in cli(*words, "--json").stdout
    assert cli(*words, "--bits", 12).returncode == 0
    assert "0.png: has the value 4000, and white is 1023" in cli(*words, "--bits", 10).stdout
    assert "bits must be in 0..16, got 40" in cli(*words, "--bits", 40).stderr


def test_hashes_that_cannot_be_kept_are_reported(tmp_path, monkeypatch):
    write_images(tmp_path, {"cat": 1})

    def refuse(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("resnet_core.data.check.replace_file", refuse)
    assert "hashes were not kept, since" in check_images(tmp_path).skipped


def test_images_that_are_there_twice_are_named_where_a_share_will_be_held_back_and_folders_beside_the_parts(tmp_path):
    write_images(tmp_path / "train", {"cat": 2, "dog\x1b[31m": 1})
    shutil.copy(tmp_path / "train" / "cat" / "1.png", tmp_path / "train" / "cat" / "2.png")
    (twice,) = check_images(tmp_path / "train").problems
    assert twice.reason == "cat/2.png: the same bytes as cat/1.png"
    (tmp_path / "unlabelled").mkdir()
    (tmp_path / "train" / "bird").mkdir()
    checked = check_images(tmp_path)
    assert checked.problems == ()
    assert checked.skipped == (
        "folders that are not a part of the data: 1 (unlabelled); "
        "class folders without an image, which training refuses (remove them): 1 (train/bird)"
    )


def test_a_folder_without_images_is_refused(tmp_path, cli):
    (tmp_path / "notes.txt").write_text("mine")
    finished = cli("data", "check", tmp_path)
    assert finished.returncode == 2
    assert "holds no images" in finished.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
