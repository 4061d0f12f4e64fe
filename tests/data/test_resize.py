"""`resnet-core data resize`: a smaller copy of a folder, which an interruption leaves whole and which goes on."""

import os

import pytest
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional as V

from resnet_core.data.images import SETTINGS_OF_COPY, ImageError, read_image
from resnet_core.data.resize import resize_images

pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded:DeprecationWarning")  # Python 3.12, of a fork
HERE = ("--workers", 0)  # in this process


@pytest.fixture
def source(tmp_path):
    """Photographs in two classes, in several formats, with what is not read among them."""
    folder = tmp_path / "photographs"
    for name in ("train/cat", "train/dog", "train/.hidden", "val/cat/deeper"):
        (folder / name).mkdir(parents=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    gradient = Image.radial_gradient("L").resize((90, 60))
    gradient.save(folder / "train" / "cat" / "a.jpg")
    gradient.save(folder / "train" / "cat" / "turned.JPG", exif=exif)
    gradient.convert("RGBA").save(folder / "train" / "dog" / "b.png")
    gradient.resize((20, 30)).save(folder / "train" / "dog" / "small.jpeg", exif=exif)
    gradient.resize((20, 30)).save(folder / "val" / "cat" / "deeper" / "small.png")
    gradient.save(folder / "train" / ".hidden" / "c.jpg")
    (folder / "train" / "dog" / "notes.txt").touch()
    return folder


COPIES = {
    "train/cat/a.jpg": (48, 32),
    "train/cat/turned.JPG": (32, 48),
    "train/dog/b.png.jpg": (48, 32),
    "train/dog/small.jpeg": (30, 20),
    "val/cat/deeper/small.png.jpg": (20, 30),
}


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_copy_keeps_the_folders_and_has_upright_jpeg_files_of_that_size(source, tmp_path, cli, workers):
    copy = tmp_path / "copy"
    made = cli("data", "resize", source, copy, "--shorter-side", 32, "--workers", workers)
    assert (made.returncode, made.stderr) == (0, "")
    assert "5 images written with a shorter side of 32 pixels at most, JPEG quality 90; 0 cannot be read" in made.stdout
    assert "hidden names: 1" in made.stdout
    assert "other files: 1" in made.stdout

    assert files_in(copy) == {*COPIES, SETTINGS_OF_COPY}
    assert {name: read_image(copy / name).size for name in COPIES} == COPIES
    assert all((copy / name).read_bytes().startswith(b"\xff\xd8\xff") for name in COPIES)
    assert (copy / "train/dog/small.jpeg").read_bytes() == (source / "train/dog/small.jpeg").read_bytes()


def test_a_copy_is_resized_as_evaluation_does(source, tmp_path):
    resize_images(source, tmp_path / "copy", shorter_side=32, quality=100)
    expected = V.resize(read_image(source / "train/cat/turned.JPG").convert("RGB"), [32], antialias=True)
    apart = V.pil_to_tensor(read_image(tmp_path / "copy" / "train/cat/turned.JPG")).int() - V.pil_to_tensor(expected)
    assert apart.abs().max() <= 4  # of 0..255: the compression


def test_an_interrupted_copy_goes_on_and_a_newer_image_is_copied_again(source, tmp_path, cli):
    copy = tmp_path / "copy"
    cli("data", "resize", source, copy, "--shorter-side", 32, *HERE)
    (copy / "train" / "cat" / "a.jpg").unlink()
    (copy / "train" / "cat" / ".a.jpg.0123.part").write_bytes(b"half")
    before = (copy / "train/dog/b.png.jpg").read_bytes()
    os.utime(source / "train" / "dog" / "b.png", ns=(2**62, 2**62))
    Image.new("RGB", (10, 10)).save(copy / "train" / "cat" / "mine.jpg")

    again = cli("data", "resize", source, copy, "--shorter-side", 32, *HERE)
    assert "2 images written" in again.stdout
    assert "3 were there already" in again.stdout
    assert "holds images that" in again.stdout
    assert "train/cat/mine.jpg" in again.stdout
    assert files_in(copy) == {*COPIES, SETTINGS_OF_COPY, "train/cat/mine.jpg"}
    assert (copy / "train/dog/b.png.jpg").read_bytes() == before
    os.utime(source / "train" / "cat" / "a.jpg", ns=(0, 0))  # as a file that was replaced by an older one
    assert resize_images(source, copy, shorter_side=32).written == 1


def test_a_copy_that_is_ended_in_the_middle_holds_whole_files_and_goes_on(source, tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_core.data.loaders.FILES_AT_A_TIME", 2)
    copy = tmp_path / "copy"

    def end(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resize_images(source, copy, shorter_side=32, advance=end)
    made = files_in(copy) - {SETTINGS_OF_COPY}
    assert made < set(COPIES)
    assert {name: read_image(copy / name).size for name in made} == {name: COPIES[name] for name in made}

    seen = []
    report = resize_images(source, copy, shorter_side=32, advance=lambda *progress: seen.append(progress))
    assert (report.written, report.kept) == (3, 2)
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_images_that_cannot_be_read_are_named_and_counted(source, tmp_path, cli):
    whole = (source / "train" / "cat" / "a.jpg").read_bytes()
    (source / "train" / "cat" / "a.jpg").write_bytes(whole[: len(whole) // 2])
    made = cli("data", "resize", source, tmp_path / "copy", "--shorter-side", 32, *HERE)
    assert made.returncode == 1
    assert f"{source}/train/cat/a.jpg is not a whole image" in made.stdout
    assert "4 images written" in made.stdout
    assert "1 cannot be read" in made.stdout


def test_names_as_long_as_they_may_be(source, tmp_path):
    for name in (f"{'n' * 251}.jpg", f"{'n' * 251}.png"):
        (source / "train" / "cat" / "a.jpg").with_name(name).write_bytes((source / "train/cat/a.jpg").read_bytes())
    report = resize_images(source, tmp_path / "copy", shorter_side=32)
    assert report.written == 6
    (too_long,) = report.unreadable
    assert "n.png has a name that is too long for its copy " in too_long


def test_folders_that_cannot_be_used_are_refused(source, tmp_path):
    copy, other = tmp_path / "copy", tmp_path / "other"
    resize_images(source, copy, shorter_side=32)
    other.mkdir()
    (other / "letter.txt").touch()
    for place, settings, message in [
        (copy, {"shorter_side": 40}, "was made with .*choose another folder"),
        (copy, {"shorter_side": 32, "quality": 80}, "was made with .*choose another folder"),
        (other, {"shorter_side": 32}, "is not an earlier copy; choose a new folder"),
        (source / "small", {"shorter_side": 32}, "lie in each other"),
        (tmp_path / "of nothing", {"shorter_side": 32, "source": other}, "holds no images; name the folder"),
        (source.parent, {"shorter_side": 32}, "lie in each other"),
        (tmp_path / "new", {"shorter_side": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            resize_images(**{"source": source, "destination": place, **settings})
    assert not (tmp_path / "of nothing").exists()
    with pytest.raises(ValueError, match="is not a folder"):
        resize_images(tmp_path / "nothing", tmp_path / "new", shorter_side=32)

    Image.new("RGB", (40, 40)).save(source / "train" / "dog" / "b.png.jpg")
    with pytest.raises(ValueError, match=r"b\.png.* would have the same copy; rename one"):
        resize_images(source, tmp_path / "new", shorter_side=32)


def test_a_full_disk_ends_the_copy_with_a_sentence(source, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resnet_core.foundation.atomic.sync", full)
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr("resnet_core.data.resize.start_copy", lambda *arguments: None)
    with pytest.raises(ImageError, match=r"cannot be written .No space left on device.; make room"):
        resize_images(source, tmp_path / "copy", shorter_side=32)
