"""Your own images: which parts are trained and evaluated on, what is skipped, and what is said of it."""

import shutil

import numpy as np
import pytest
from PIL import Image

from resnet_core.data import FolderOptions, load_dataset, load_test
from resnet_core.data.datasets import load_evaluation
from resnet_core.data.describe import describe


def write_images(folder, counts, start=0):
    """This many images of each class, no two of them alike."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.random.default_rng((start, number, index)).integers(0, 256, (6, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def names_of(files):
    return [files.path(index).relative_to(files.folder).as_posix() for index in range(len(files))]


def load(path, **options):
    return load_dataset("image_folder", str(path), FolderOptions(**options))


def refuses(path, message, **options):
    with pytest.raises(ValueError, match=message) as error:
        load(path, **options)
    assert "\n" not in str(error.value)


BOTH = {"cat": 2, "dog": 2}


@pytest.mark.parametrize("name", ["val", "VALID", "Validation", "dev"])
def test_a_validation_folder_by_any_of_its_names_is_evaluated_and_test_is_not_read(tmp_path, name):
    write_images(tmp_path / "Train", BOTH)
    write_images(tmp_path / name, {"cat": 1, "dog": 3})
    write_images(tmp_path / "test", {"cat": 1})
    (tmp_path / "unlabelled").mkdir()
    dataset = load(tmp_path)
    assert dataset.test.folder == tmp_path / name
    assert dict(dataset.notes)["evaluation"] == f"{tmp_path / name}; test, unlabelled are not read"
    assert load_test("image_folder", str(tmp_path), split="test")[0].folder == tmp_path / "test"
    assert load_test("image_folder", str(tmp_path), split="train")[0].folder == tmp_path / "Train"


def test_two_folders_of_one_part_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        write_images(tmp_path / name, BOTH)
    refuses(tmp_path, "holds both val and valid, which are the same part of the data; keep one")


def test_a_class_without_evaluated_images_is_named_and_an_unknown_one_is_refused(tmp_path):
    write_images(tmp_path / "train", {"cat": 2, "dog": 2, "elk": 1})
    write_images(tmp_path / "val", {"dog": 2})
    dataset = load(tmp_path)
    assert dataset.test.labels.tolist() == [1, 1]
    assert dict(dataset.notes)["evaluation"].endswith("/val; it has no images of cat, elk")
    write_images(tmp_path / "val", {"fox": 1})
    write_images(tmp_path / "train", {"caf\u00e9": 1})
    write_images(tmp_path / "val", {"cafe\u0301": 1})
    refuses(tmp_path, r"val has classes that .*train lacks: cafe\u0301, fox \(the same letters, but other .*; rename")


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_share_of_each_class_is_held_back(tmp_path, tmp_path_factory, inside):
    write_images(tmp_path / inside, {"cat": 20, "dog": 5, "elk": 1})
    write_images(tmp_path / "test", {"cat": 1}) if inside else None
    dataset = load(tmp_path, val_share=0.2)
    train, held = names_of(dataset.train), names_of(dataset.test)
    assert sorted(train + held) == sorted(names_of(load_test("image_folder", str(tmp_path / inside))[0]))
    assert dataset.test.labels.tolist() == [0, 0, 0, 0, 1]  # a single image is trained on
    assert "drawn with --data.val-seed 0" in dict(dataset.notes)["evaluation"]
    assert ("test is not read" in dict(dataset.notes)["evaluation"]) == bool(inside)

    part, _, notes = load_evaluation("image_folder", str(tmp_path), FolderOptions(val_share=0.2), "train")
    assert (names_of(part), "without the images held back" in dict(notes)["evaluation"]) == (train, True)

    assert names_of(load(tmp_path, val_share=0.2, val_seed=1).test) != held
    assert names_of(load_test("image_folder", str(tmp_path), FolderOptions(val_share=0.2))[0]) == held
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(tmp_path, elsewhere, dirs_exist_ok=True)
    write_images(elsewhere / inside, {"fox": 9})
    there = names_of(load(elsewhere, val_share=0.2).test)
    assert [name for name in there if "fox" not in name] == held


def test_a_folder_of_classes_needs_a_share_and_a_folder_with_validation_none(tmp_path):
    write_images(tmp_path, BOTH)
    refuses(
        tmp_path, r"no folder train; put images into .*/train/CLASS and .* or hold back a fifth .* --data.val-share"
    )
    write_images(tmp_path / "parts" / "train", BOTH)
    refuses(
        tmp_path / "parts", r"no folder val or test .* or hold back a fifth of the images with --data.val-share 0.2"
    )
    with pytest.raises(ValueError, match="only train; add one, or choose --split train"):
        load_test("image_folder", str(tmp_path / "parts"))
    write_images(tmp_path / "parts" / "val", BOTH)
    refuses(tmp_path / "parts", "has images for validation; leave out --data.val-share 0.2", val_share=0.2)


@pytest.mark.parametrize(
    ("counts", "val_share", "message"),
    [
        (
            {"Training/cat": 1, "Testing/cat": 1},
            0.2,
            "Testing is named like a part of the data, and holds folders; call",
        ),
        ({"in/train/cat": 1, "in/val/cat": 1}, 0.2, "in is not a class, since it has the parts train, val; name that"),
        (
            {"bus": 2, "train": 2},
            0.2,
            "train has no class folders; put .*/CLASS/IMAGE, or rename it if train is a class",
        ),
        ({"images/cat": 2, "test/cat": 2}, 0.2, "has no folder train, only images, test; add it"),
        ({"cat": 1, "dog": 1}, 0.2, "has one image of each class, so none can be held back for validation; add"),
        ({"cat": 2, "caf\udce9": 2}, 0.2, r"has a class folder 'caf.udce9', which is not UTF-8; write that name"),
    ],
)
def test_folders_that_are_not_what_they_look_like_are_refused(tmp_path, counts, val_share, message):
    write_images(tmp_path, counts)
    refuses(tmp_path, message, val_share=val_share)


@pytest.fixture
def listed(tmp_path):
    """Writes a CSV list beside six images, and returns its path."""
    write_images(tmp_path / "all", {"a": 6})

    def write(text):
        (tmp_path / "LIST.CSV").write_bytes(f"\ufeff{text}".encode(errors="surrogateescape"))  # as spreadsheets save it
        return tmp_path / "LIST.CSV"

    return write


def test_a_list_names_paths_labels_and_splits(listed, tmp_path):
    path = listed(
        "Label, path ,SPLIT\n"
        'dog,all/a/1.png,Train\n"cat, wild",all/a/2.png,train\n dog , all/a/0.png, dev\n'
        f"dog,{tmp_path}/all/a/5.png,test\n"
    )
    dataset = load(path)
    assert dataset.class_names == ("cat, wild", "dog")
    assert (names_of(dataset.train), dataset.train.labels.tolist()) == (["all/a/2.png", "all/a/1.png"], [0, 1])
    assert names_of(dataset.test) == ["all/a/0.png"]
    notes = dict(dataset.notes)["evaluation"]
    assert notes == f"{path}, split val; split test is not read; it has no images of cat, wild"
    assert dataset.test[0][0].shape == (3, 6, 7)
    assert names_of(load_test("image_folder", str(path), split="test")[0]) == ["all/a/5.png"]


def test_a_list_without_splits_is_split_by_a_share(listed):
    rows = "".join(f"all/a/{number}.png,{number % 2}\n" for number in range(6))
    dataset = load(listed("path,label\n" + rows), val_share=0.4)
    assert dataset.test.labels.tolist() == [0, 1]
    assert dict(dataset.notes)["evaluation"].endswith("drawn with --data.val-seed 0")
    refuses(
        listed("path,label\n" + rows),
        "no split train; write train and val into the column split, or hold back .* --data.val-share 0.2",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\n", "has the columns file, class; it needs path and label"),
        (
            "path;label\n",
            "has the columns path;label; it needs path and label, .*, each once and separated by commas",
        ),
        ("", "has the columns none"),
        ("p\0a\0t\0h", "is not a list in UTF-8; name a folder of images, or save the list as CSV in UTF-8"),
        ("path,label\nall\\a\\0.png,x\n", "which is not a file; write / between folders"),
        ("path,label\n", "lists no images"),
        ("path,label\nall/a/0.png,\n", "line 2 has no label"),
        (
            "path,label,split\nall/a/0.png,x,train\n",
            "no split val or test to evaluate on; write val for some images",
        ),
        ("path,label\nall/a/9.png,x\n", "line 2 names .*all/a/9.png, which is not a file"),
        ("path,label\nall/a/0.png,x\nall/a/0.png,y\n", "lines 2 and 3 both name all/a/0.png"),
        ("path,label,split\nall/a/0.png,x,train\n./all/a/0.png,x,val\n", "lines 2 and 3 both name"),
        ("path,label\nall/a/0.png,cat, wild\n", "line 2 has more values than columns; put a value that holds a comma"),
        (
            'path,label\n"all/a/0.png,x\nall/a/1.png,x\n',
            r"is not CSV from line 2 on \(unexpected end of data\); close what",
        ),
        ("path,label,label\nall/a/0.png,x,y\n", "has the columns path, label, label; it needs"),
        ("path,label\nall/a/0.png,caf\udce9\n", r"line 2 has the label 'caf.udce9', which is not UTF-8; write"),
        ("path,label,split\nall/a/0.png,x,holdout\n", "line 2 has the split 'holdout'; choose one of train, val"),
    ],
)
def test_a_list_that_is_not_right_is_refused_with_its_line(listed, text, message):
    refuses(listed(text), message)


def test_all_that_is_skipped_is_counted_with_its_reason(tmp_path):
    write_images(tmp_path / "train", {"cat": 2, "dog": 3})
    write_images(tmp_path / "val", BOTH)
    for name in (
        *("cat/._0.png", "cat/.ipynb_checkpoints/0.png", "dog/__MACOSX/0.png", ".DS_Store"),
        *("cat/a.jp2", "cat/b.JP2", "cat/c.dng", "loose.png", "cat/notes.txt"),
        *("../top.png", "../__MACOSX/top.png", "../.resnet-core-hashes.csv"),
    ):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).touch()
    (tmp_path / "exclude.txt").write_text("# twice the same\nval/dog/1.png\n./val/cat/9.png\n")
    dataset = load(tmp_path, exclude=str(tmp_path / "exclude.txt"))
    assert (len(dataset.train), names_of(dataset.test)) == (5, ["cat/0.png", "cat/1.png", "dog/0.png"])
    assert dict(dataset.notes)["skipped"].split("; ") == [
        "photographs that are not read (save them as JPEG or PNG): 3 (2 .jp2, 1 .dng)",
        "images outside any class folder: 2 (top.png, train/loose.png)",
        "hidden names: 5 (4 no ending, 1 .png)",
        "other files: 2 (exclude.txt, train/cat/notes.txt)",
        "images on the exclude list: 1 (val/dog/1.png)",
    ]
    assert dict(dataset.notes)["exclude list"] == f"names 1 that are no files inside {tmp_path}: val/cat/9.png"


def test_images_in_folders_inside_a_class_are_counted(tmp_path):
    write_images(tmp_path, {"cat/2025": 2, "cat": 1, "dog": 2})
    nested = dict(load(tmp_path, val_share=0.5).notes)["nested"]
    assert nested == "2 images lie in folders inside a class: cat/2025/0.png, cat/2025/1.png"
    (tmp_path / "cat" / "2025" / "1.png").unlink()
    nested = dict(load(tmp_path, val_share=0.5).notes)["nested"]
    assert nested == "1 image lies in a folder inside a class: cat/2025/0.png"


def test_a_list_excludes_images_however_their_paths_are_written(listed, tmp_path):
    names = [
        "all/a/0.png",
        "./all/a/1.png",
        f"{tmp_path}/all/a/2.png",
        *(f"all/a/{number}.png" for number in (3, 4, 5)),
    ]
    path = listed("path,label\n" + "".join(f"{name},{number % 2}\n" for number, name in enumerate(names)))
    (tmp_path / "exclude").write_text("\ufeffall/a/0.png\n./all/a/1.png\n" + names[2])
    dataset = load(path, exclude=str(tmp_path / "exclude"), val_share=0.5)
    assert len(dataset.train) + len(dataset.test) == 3
    assert "exclude list" not in dict(dataset.notes)


def test_a_class_of_nothing_that_is_read_is_refused_with_what_it_holds(tmp_path):
    write_images(tmp_path / "train", BOTH)
    write_images(tmp_path / "val", BOTH)
    for path in (tmp_path / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".jp2"))
    refuses(
        tmp_path, r"train/dog is a folder without images that are read \(it holds 0.jp2, 1.jp2\); known endings are"
    )


def test_a_list_that_excludes_a_whole_class_is_refused(tmp_path):
    write_images(tmp_path / "train", BOTH)
    write_images(tmp_path / "val", BOTH)
    (tmp_path / "list").write_text("train/dog/0.png\ntrain/dog/1.png\n")
    refuses(tmp_path, "list excludes every image of dog in .*train; shorten", exclude=str(tmp_path / "list"))
    refuses(tmp_path, "nowhere cannot be read .*; correct data.exclude", exclude=str(tmp_path / "nowhere"))


def test_what_people_should_know_before_training_is_one_line_each(tmp_path):
    write_images(tmp_path / "train", {"cat": 9, "dog": 4})
    write_images(tmp_path / "val", {"dog": 1})
    lines = dict(describe(load(tmp_path), global_batch=5))
    assert list(lines) == ["data", "evaluation", "classes", "left over"]
    assert lines["data"] == "13 images of 2 classes to train on, 1 image of 1 class to evaluate on"
    assert lines["classes"] == "4 to 9 images each to train on: dog has the fewest, cat the most"
    assert lines["left over"].startswith("3 of the 13 images in each epoch, different ones each time")
    assert "left over" not in dict(describe(load(tmp_path), global_batch=13))
    repeated = dict(describe(load(tmp_path), global_batch=12, repeats=4))
    assert repeated["left over"].startswith("10 of the 13 images")
