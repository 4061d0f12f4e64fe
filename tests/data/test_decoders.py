"""simplejpeg's training images beside Pillow's: the same crops, the same pixels where the whole image is decoded."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from parity.image_files import KINDS
from resnet_core.data import DataConfig, Dataset, ImageError, Split, dataset_of, loaders_of
from resnet_core.data.datasets import full_size
from resnet_core.data.decoders import REDUCTIONS, JpegImage, with_simplejpeg
from resnet_core.recipes import Recipe, make_trainer
from resnet_core.recipes.recipe import ModelConfig
from resnet_core.train import TrainConfig
from resnet_core.train.forward import unchanged

SMOOTH = np.kron(np.random.default_rng(0).integers(0, 256, (6, 9, 3)), np.ones((16, 16, 1))).astype(
    np.uint8
)  # 96 x 144


def jpeg_files():
    """Name -> how Pillow saves such a JPEG file."""
    image = Image.fromarray(SMOOTH)
    kinds = {
        "4:2:0": partial(image.save, subsampling="4:2:0"),
        "4:4:4": partial(image.save, subsampling="4:4:4"),
        "progressive": partial(image.save, progressive=True),
        "grey": image.convert("L").save,
        "RGB": partial(image.save, keep_rgb=True),
        "XMP": partial(image.save, xmp=b'<x tiff:Orientation="6"/>'),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        kinds[f"orientation {orientation}"] = partial(image.save, exif=exif)
    return kinds


JPEG_FILES = jpeg_files()


@pytest.fixture
def folder(tmp_path):
    """A folder of two classes, to which tests add images."""
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(SMOOTH).save(tmp_path / part / name / "0.jpg")
    return tmp_path


def config_of(folder, **settings):
    return DataConfig(
        **{
            "name": "image_folder",
            "path": str(folder),
            "decoder": "simplejpeg",
            "global_batch": 2,
            "train_size": 32,
            "random_resized_crop": 0.3,
            "flip": True,
            **settings,
        }
    )


def images_of(config, normalized=False):
    loader, _ = loaders_of(config, dataset_of(config), epochs=1, seed=0, normalized=normalized)
    return torch.cat([images for images, _ in loader.epoch(0)])


def the_file(folder):
    """The folder's first training image, encoded."""
    return with_simplejpeg(dataset_of(config_of(folder)).train).take([0])[0]


@pytest.mark.parametrize("kind", JPEG_FILES)
@pytest.mark.parametrize("crop", [0.3, 0.0])
def test_the_views_of_a_file_that_is_decoded_whole_are_pillows(folder, kind, crop):
    JPEG_FILES[kind](folder / "train" / "cat" / "0.jpg")
    assert isinstance(the_file(folder), JpegImage)
    views = [
        images_of(config_of(folder, decoder=decoder, random_resized_crop=crop, train_size=70)).int()
        for decoder in ("simplejpeg", "pillow")
    ]
    assert (views[0] - views[1]).abs().max() <= 1  # two copies of libjpeg-turbo, of two versions


@pytest.mark.parametrize("orientation", [1, 6, 3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduced_region_is_pillows_region_resized(folder, orientation, reduction):
    JPEG_FILES[f"orientation {orientation}"](folder / "train" / "cat" / "0.jpg")
    image = the_file(folder)
    whole = image.by_pillow()
    assert whole.shape[1:] == image.shape
    top, left, height, width = 17, 8, 64, 72

    region = image.region(top, left, height, width, 64 // reduction)
    assert abs(region.shape[1] - height / reduction) <= 1
    expected = Image.fromarray(whole.permute(1, 2, 0).numpy()).resize(
        (region.shape[2], region.shape[1]), Image.Resampling.BOX, box=(left, top, left + width, top + height)
    )
    apart = (region.permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()).abs().float()
    assert apart.mean() < 25  # of 0..255; another place of this image is 80 away
    assert image.region(top, left, height, width, 33).shape[1:] == (height, width)


def test_random_crops_are_the_same_places_with_both_decoders(folder):
    """A reduced image is a little softer, and nothing else."""
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    Image.fromarray(
        np.stack([np.tile(ramp[:512, None], 640), np.tile(ramp, (512, 1)), np.full((512, 640), 90)], -1).astype(
            np.uint8
        )
    ).save(folder / "train" / "cat" / "0.jpg", quality=95)
    config = config_of(folder, train_size=48)
    views = [images_of(replace(config, decoder=decoder)).float() for decoder in ("simplejpeg", "pillow")]
    assert (views[0] - views[1]).abs().max() < 4


@pytest.mark.parametrize("name", ["png", "cmyk", "extra bytes inside", "many pixels"])
def test_what_simplejpeg_does_not_decode_pillow_does(folder, name, monkeypatch):
    file = folder / "train" / "cat" / "0.jpg"
    image = Image.fromarray(SMOOTH)
    if name == "png":
        image.save(file, format="PNG")
    elif name == "cmyk":
        image.convert("CMYK").save(file)
    elif name == "many pixels":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SMOOTH.size // 3 - 1)
    else:
        data = file.read_bytes()
        file.write_bytes(data[:-2] + bytes(30) + data[-2:])
    assert isinstance(the_file(folder), JpegImage) == (name == "extra bytes inside")
    views = [images_of(config_of(folder, decoder=decoder, train_size=70)) for decoder in ("simplejpeg", "pillow")]
    assert torch.equal(*views)


def views_or_error(folder, decoder):
    try:
        return images_of(config_of(folder, decoder=decoder, train_size=256))
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_and_damaged_files_end_as_with_pillow(folder, kind):
    if "extra `heic`" in kind:
        pytest.importorskip("pillow_heif")
    KINDS[kind][0](folder / "train" / "cat")
    found, expected = (views_or_error(folder, decoder) for decoder in ("simplejpeg", "pillow"))
    assert found == expected if isinstance(expected, str) else torch.equal(found, expected)


def test_batches_that_stay_uint8_train_to_the_same_bits(folder):
    """The trainer normalises them on the device; the same arithmetic in the loader is the oracle."""
    recipe = Recipe(
        model=ModelConfig(name="cifar_resnet20"),
        data=config_of(folder, eval_size=32, eval_resize=32),
        train=TrainConfig(epochs=2),
    )
    weights = []
    for on_device in (True, False):
        trainer = make_trainer(recipe)
        assert next(trainer.train_loader.epoch(0))[0].dtype == torch.uint8
        assert next(iter(trainer.eval_loader))[0].dtype == torch.uint8
        if not on_device:
            loaders = loaders_of(recipe.data, dataset_of(recipe.data), epochs=2, seed=recipe.seed)
            trainer.train_loader, trainer.eval_loader = loaders
            trainer.prepare_inputs = unchanged
        scores = trainer.fit()
        weights.append({**trainer.weights(), "loss": torch.tensor(scores["loss"])})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("settings", [{"random_erasing": 0.5}, {"mixup": 0.2}, {"cutmix": 1.0}])
def test_what_happens_after_normalising_keeps_batches_normalised(folder, settings):
    recipe = Recipe(
        model=ModelConfig(name="cifar_resnet20"), data=config_of(folder, **settings), train=TrainConfig(epochs=1)
    )
    trainer = make_trainer(recipe)
    assert next(trainer.train_loader.epoch(0))[0].dtype == torch.float32
    assert trainer.prepare_inputs is unchanged
    with pytest.raises(ValueError, match="need normalised images"):
        images_of(recipe.data)


def test_a_decoder_that_is_unknown_unfitting_or_not_installed_is_refused(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown decoder 'pilow'.*pillow"):
        config_of(folder, decoder="pilow")
    with pytest.raises(ValueError, match=r"data\.decoder is for images in folders, and data\.name is digits"):
        DataConfig(name="digits", decoder="simplejpeg", global_batch=4)

    split = Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4))
    memory = Dataset(train=split, test=split, class_names=tuple("abcd"), transform=full_size(8, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(ValueError, match="is for image files"):
        loaders_of(config_of(folder), memory, epochs=1, seed=0)

    monkeypatch.setattr("resnet_core.data.decoders.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'resnet-core\[fast\]'"):
        images_of(config_of(folder))
