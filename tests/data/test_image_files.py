"""Odd and damaged files: each kind of parity.image_files has its promised result, and the page shows them."""

from pathlib import Path

import PIL
import pytest

from parity.image_files import KINDS, main, result_of
from resnet_core.data import images
from resnet_core.data.images import ImageError, find_images, read_image

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_there_are_sixty_kinds_and_more():
    assert len(KINDS) >= 60


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_file_has_the_result_that_it_is_promised(kind, tmp_path):
    if "extra `heic`" in kind:
        pytest.importorskip("pillow_heif")
    make, promise = KINDS[kind]
    assert result_of(make, tmp_path).startswith(promise)


def test_the_page_of_data_shows_the_table(capsys):
    page = PAGE.read_text()
    if f"with Pillow {PIL.__version__}" not in page:
        pytest.skip("the page's table is of another version of Pillow")
    pytest.importorskip("pillow_heif")
    main()
    assert capsys.readouterr().out in page


def test_pillows_warnings_do_not_reach_anybody(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)  # Pillow warns of more, and refuses twice as many
    KINDS["JPEG"][0](tmp_path)
    assert read_image(tmp_path / "photo.jpg").size == (40, 30)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(images.os, "scandir", refuse)
    with pytest.raises(ImageError, match=r"cannot be read \(Permission denied\); allow reading it, or leave it out"):
        find_images(tmp_path)


@pytest.fixture
def without_heif(monkeypatch):
    """As where pillow-heif is not installed."""
    find = images.find_spec
    monkeypatch.setattr(images, "find_spec", lambda name: None if name == "pillow_heif" else find(name))
    for cached in (images.formats, images.endings):
        cached.cache_clear()
    yield
    for cached in (images.formats, images.endings):
        cached.cache_clear()


def test_a_heic_without_its_library_is_skipped_by_its_ending_and_named_by_its_content(without_heif, tmp_path):
    heic = b"\0\0\0\x18ftypheic" + bytes(99)
    (tmp_path / "photo.jpg").write_bytes(heic)
    with pytest.raises(ImageError, match=r"it is HEIC, and pip install 'resnet-core\[heic\]' reads them"):
        read_image(tmp_path / "photo.jpg")
    (tmp_path / "photo.HEIC").write_bytes(heic)
    assert images.list_folder(tmp_path).photographs == ["photo.HEIC"]
    assert len(find_images(tmp_path)) == 2  # one that a prediction fails for is reported with its reason
