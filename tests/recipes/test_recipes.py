"""Recipes: what a trainer made from one does, and the run's folder."""

import json
import shutil
import tomllib
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import resnet_core
from resnet_core.builders import get_model
from resnet_core.classifier.losses import LOSSES
from resnet_core.data import DataConfig, identity, load_digits
from resnet_core.foundation.toml import from_mapping, to_toml
from resnet_core.models.backbone import has_small_stem
from resnet_core.models.registry import MODELS
from resnet_core.recipes import RECIPES, SOURCES, LossConfig, get_recipe, make_loaders, make_model, make_trainer
from resnet_core.recipes.losses import NAMES
from resnet_core.recipes.recipe import ModelConfig, overlay, scaling_advice
from resnet_core.runs.training import load_run, run
from resnet_core.train import RunConfig, TrainConfig, World
from resnet_core.train.averaging import AveragingConfig
from resnet_core.train.optimizers import OptimizerConfig, build_optimizer
from resnet_core.train.schedules import ScheduleConfig
from resnet_core.weights import WeightsInfo, load_weights, write_weights
from tests.conftest import claim

TINY = replace(RECIPES["digits"], train=TrainConfig(epochs=1), schedule=ScheduleConfig())


def test_a_trainer_follows_its_recipe():
    recipe = RECIPES["digits"]
    trainer = make_trainer(recipe)
    steps_per_epoch = 1437 // 64
    assert trainer.num_steps == 30 * steps_per_epoch
    assert trainer.lr_fn(0) == pytest.approx(0.1 / (2 * steps_per_epoch))
    assert trainer.lr_fn(2 * steps_per_epoch - 1) == 0.1
    assert trainer.lr_fn(16 * steps_per_epoch) == pytest.approx(0.05)
    (group,) = trainer.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-3, True)
    assert len(group["params"]) == len(list(trainer.model.parameters()))
    augment = trainer.train_loader.batches.augment
    assert (augment.crop_padding, augment.flip, augment.size_of_epoch(0)) == (1, False, 16)


def test_the_seed_decides_the_weights_and_the_order():
    def first_loss(seed):
        return next(make_trainer(replace(TINY, seed=seed)).steps()).loss

    assert first_loss(1) == first_loss(1) != first_loss(2)


def test_a_recipe_survives_toml():
    for recipe in RECIPES.values():
        assert from_mapping(type(recipe), tomllib.loads(to_toml(recipe)), "test") == recipe


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="unknown recipe 'digts'; did you mean digits"):
        get_recipe("digts")
    with pytest.raises(TypeError, match=r"a Recipe is needed, got 'digits'; .*get_recipe\(NAME\)"):
        make_trainer("digits")


def test_a_run_that_goes_on_elsewhere_says_that_it_is_not_bit_for_bit(tmp_path, capsys):
    run(TINY, tmp_path / "run")
    assert "bit for bit" not in capsys.readouterr().out
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["threads"] == torch.get_num_threads()
    elsewhere = {"torch": "2.0", "device": "a GPU", "world_size": 8, "threads": 99}
    (tmp_path / "run" / "environment.json").write_text(json.dumps({**environment, **elsewhere}))
    (tmp_path / "run" / "result.json").unlink()

    run(TINY, tmp_path / "run")
    printed = capsys.readouterr().out
    changed = "; ".join(f"{key} was {value}, is {environment[key]}" for key, value in elsewhere.items())
    assert f"continuing, but not bit for bit: {changed}\n" in printed
    assert "continuing from step 22/22" in printed
    assert (tmp_path / "run" / "result.json").exists()


def test_a_file_of_toml_changes_what_it_names_and_nothing_else(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('seed = 3\n[optimizer]\nlr = 0.2\n[schedule]\nname = "milestones"\nmilestones = [5.0, 10.0]\n')
    digits = RECIPES["digits"]
    found = overlay(digits, path)
    assert found.optimizer == replace(digits.optimizer, lr=0.2)
    assert (found.seed, found.schedule.milestones, found.schedule.warmup_epochs) == (3, (5.0, 10.0), 2.0)
    assert replace(found, seed=0, optimizer=digits.optimizer, schedule=digits.schedule) == digits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nlrr = 1", r"mine.toml: optimizer: unknown key 'lrr'; did you mean lr"),
        ("[optimiser]\nlr = 1", r"mine.toml: unknown key 'optimiser'; did you mean optimizer"),
        ("[schedule]\nmilestones = ['a']", r"milestones should be a list, each of type float, got \['a'\]"),
        ("optimizer = 3", r"optimizer should be a table, got 3"),
        ("[optimizer", "is not TOML"),
    ],
)
def test_a_file_that_fits_no_recipe_is_named(text, message, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        overlay(RECIPES["digits"], tmp_path / "mine.toml")
    with pytest.raises(ValueError, match=r"nowhere.toml cannot be read"):
        overlay(RECIPES["digits"], tmp_path / "nowhere.toml")


def test_linear_scaling_is_advised_where_the_batch_alone_changed():
    digits = RECIPES["digits"]
    larger = replace(digits, data=replace(digits.data, global_batch=128))
    assert scaling_advice(digits, digits) is None
    assert scaling_advice(digits, larger).endswith("linear scaling would be --optimizer.lr 0.2")
    assert scaling_advice(digits, replace(larger, optimizer=replace(digits.optimizer, lr=0.2))) is None


def test_settings_that_cannot_change_the_weights_continue_the_same_run(tmp_path):
    claim(TINY, tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text("{}")
    claim(replace(TINY, run=RunConfig(log_every_steps=1), data=replace(TINY.data, workers=2)), tmp_path / "run")
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        claim(replace(TINY, seed=1), tmp_path / "run")


def small_images(folder, count=4, shade=0):
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (folder / part / name).mkdir(parents=True)
            for image in range(count):
                Image.new("RGB", (8, 8), (90 * number, 9 * image, shade)).save(folder / part / name / f"{image}.png")
    return str(folder)


@pytest.fixture
def begun(tmp_path):
    """A recipe on a folder of images, and the folder of its finished run."""
    data = DataConfig(name="image_folder", path=small_images(tmp_path / "here"), global_batch=4, train_size=16)
    recipe = replace(TINY, data=replace(data, eval_resize=16, eval_size=16))
    run(recipe, tmp_path / "run")
    return recipe, tmp_path / "run"


def on(recipe, path):
    return replace(recipe, data=replace(recipe.data, path=path))


def test_a_run_continues_where_its_data_lie_elsewhere_and_is_refused_where_they_differ(begun, tmp_path):
    recipe, out = begun
    claim(on(recipe, small_images(tmp_path / "there")), out)
    with pytest.raises(
        ValueError, match=r"run holds a run on other data \(training images: 8 there and 10 here; test im"
    ):
        claim(on(recipe, small_images(tmp_path / "more", count=5)), out)
    (tmp_path / "there" / "train" / "cat" / "0.png").rename(tmp_path / "there" / "train" / "cat" / "x.png")
    with pytest.raises(
        ValueError, match=r"other data \(1 file is gone: train/cat/0.png; 1 file is new: .*\); correct data.path, or"
    ):
        claim(on(recipe, str(tmp_path / "there")), out)


def test_a_damaged_record_of_the_environment_is_named(begun):
    recipe, out = begun
    (out / "environment.json").write_text('{"torch"')
    (out / "result.json").unlink()
    with pytest.raises(ValueError, match=r"environment.json is not JSON .* remove it to continue"):
        run(recipe, out)


def test_images_in_memory_are_told_apart_by_their_pixels():
    digits = load_digits()
    changed = digits.train.images.clone()
    changed[7, 0, 3, 3] += 0.5
    other = replace(digits, train=replace(digits.train, images=changed))
    assert identity(digits) == identity(load_digits()) != identity(other)


# Channels of a recipe's images -> their pixels in training.
SIZES = {1: (16, 28), 3: (16, 32, 160, 176, 224)}


@pytest.mark.parametrize("name", MODELS)
def test_each_model_can_be_put_into_each_recipe(name):
    config = ModelConfig(name=name)
    for channels, sizes in SIZES.items():
        with torch.device("meta"):
            model = make_model(config, num_classes=10, in_channels=channels)
            for size in sizes:
                assert model(torch.empty(2, channels, size, size)).shape == (2, 10)
    for recipe in RECIPES.values():
        groups = build_optimizer(model, replace(recipe, model=config).optimizer, head=model.fc).param_groups
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_losses_take_class_numbers_and_probabilities_alike(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])
    certain = torch.nn.functional.one_hot(labels, 4).float()
    for loss in (LOSSES[name] for name in NAMES):
        values = [loss(logits, targets, label_smoothing=smoothing) for targets in (labels, certain)]
        torch.testing.assert_close(*values)
    log = torch.nn.functional.logsigmoid
    wanted = certain * (1 - smoothing) + smoothing / 4
    by_hand = -(wanted * log(logits) + (1 - wanted) * log(-logits)).sum() / 6
    torch.testing.assert_close(LOSSES["binary_cross_entropy"](logits, labels, label_smoothing=smoothing), by_hand)


def test_shares_of_a_mixed_image_become_yes_and_no_above_the_threshold():
    loss = LossConfig(name="binary_cross_entropy", target_threshold=0.2)
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.9, 0.0, 0.1]])
    certain = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(
        loss.of(logits, shares), F.binary_cross_entropy_with_logits(logits, certain, reduction="sum") / 2
    )
    labels = torch.tensor([2, 0])
    torch.testing.assert_close(loss.of(logits, labels), replace(loss, target_threshold=0.0).of(logits, labels))
    with pytest.raises(
        ValueError, match=r"loss.target_threshold is binary_cross_entropy's; leave it 0 for cross_entropy"
    ):
        LossConfig(target_threshold=0.2)


def test_every_recipe_says_where_it_comes_from():
    assert list(SOURCES) == list(RECIPES)


# What the sources publish: global batch, epochs, peak learning rate, momentum, weight decay; then what is not usual.
PUBLISHED = {
    "imagenet_nvidia90": (2048, 90, 2.048, 0.875, 1 / 32768),
    "imagenet_torchvision_v1": (256, 90, 0.1, 0.9, 1e-4),
    "imagenet_torchvision_v2": (1024, 600, 0.5, 0.9, 2e-5),
    "imagenet_a3": (2048, 100, 0.008, 0.9, 0.02),
}
UNUSUAL = {
    "imagenet_nvidia90": {
        "optimizer": {"decay_norms": False},
        "schedule": {"warmup_epochs": 8, "t_max_epochs": 82},
        "loss": {"label_smoothing": 0.1},
        "data": {"eval_resize": 256, "eval_size": 224},
    },
    "imagenet_torchvision_v1": {
        "schedule": {"name": "milestones", "milestones": (30.0, 60.0)},
        "data": {"eval_resize": 256, "eval_size": 224},
    },
    "imagenet_torchvision_v2": {
        "optimizer": {"decay_norms": False},
        "schedule": {"warmup_epochs": 5, "warmup_start_factor": 0.01},
        "loss": {"label_smoothing": 0.1},
        "data": {
            "eval_resize": 232,
            "eval_size": 224,
            "train_size": 176,
            "trivial_augment": True,
            "random_erasing": 0.1,
        }
        | {"mixup": 0.2, "cutmix": 1.0, "repeated_augmentation": 4},
        "averaging": {"ema_every_steps": 32},
    },
    "imagenet_a3": {
        "optimizer": {"name": "lamb", "decay_norms": False, "decay_biases": False},
        "schedule": {"warmup_epochs": 5, "final_lr": 1e-6},
        "loss": {"name": "binary_cross_entropy", "target_threshold": 0.2},
        "data": {"eval_resize": 236, "eval_size": 224, "train_size": 160, "rand_augment_ops": 2}
        | {"rand_augment_magnitude": 18, "mixup": 0.1, "cutmix": 1.0},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_has_its_sources_numbers_and_no_others(name):
    recipe = RECIPES[name]
    batch, epochs, lr, momentum, weight_decay = PUBLISHED[name]
    expected = {
        "model": ModelConfig(name="resnet50"),
        "data": DataConfig(name="image_folder", global_batch=batch, random_resized_crop=0.08, flip=True, workers=8),
        "loss": LossConfig(),
        "optimizer": OptimizerConfig(lr=lr, momentum=momentum, weight_decay=weight_decay),
        "schedule": ScheduleConfig(),
        "averaging": AveragingConfig(),
        "train": TrainConfig(epochs=epochs, precision="bf16", channels_last=True),
    }
    for section, settings in expected.items():
        found = getattr(recipe, section)
        if section == "averaging":
            found = replace(found, ema_decay=0.0)  # see below
        assert found == replace(settings, **UNUSUAL[name].get(section, {})), section


def test_torchvisions_average_remembers_as_long_as_it_says():
    """Its references: 0.99998 for a batch of one image, adjusted to 8 x 128 images every 32 steps over 600 epochs."""
    assert RECIPES["imagenet_torchvision_v2"].averaging.ema_decay == pytest.approx(1 - (1 - 0.99998) * 1024 * 32 / 600)


def test_a_finetuned_head_learns_ten_times_as_fast():
    recipe = RECIPES["finetune"]
    model = resnet_core.resnet18()
    fast, slow = (
        {
            id(each)
            for group in build_optimizer(model, recipe.optimizer, head=model.fc).param_groups
            if group["lr_scale"] == scale
            for each in group["params"]
        }
        for scale in (10.0, 1.0)
    )
    assert fast == {id(each) for each in model.fc.parameters()}
    assert len(slow) == len(list(model.parameters())) - 2
    assert recipe.model == ModelConfig(name="resnet50", weights="resnet50:IMAGENET1K_V2")


def test_the_card_is_the_card():
    """The model card: learning rate 2.048, momentum 0.875, weight decay 5e-4, batch 2048, 8 + 82 epochs."""
    card = RECIPES["imagenet_card"]
    assert (card.optimizer.lr, card.optimizer.momentum, card.optimizer.weight_decay) == (2.048, 0.875, 5e-4)
    assert (card.data.global_batch, card.train.epochs) == (2048, 90)
    assert (card.schedule.warmup_epochs, card.schedule.t_max_epochs, card.schedule.final_lr) == (8, 82, 0)
    literal = RECIPES["imagenet_card_literal"]
    assert (card.optimizer.name, literal.optimizer.name) == ("decoupled_sgd", "sgd")
    assert replace(literal, optimizer=replace(literal.optimizer, name="decoupled_sgd")) == card


def test_the_papers_cifar_protocol_ends_after_64000_steps():
    recipe, steps_per_epoch = RECIPES["cifar10_resnet56"], 50_000 // 128
    assert recipe.train.epochs * steps_per_epoch == pytest.approx(64_000, abs=steps_per_epoch)
    lr_fn = recipe.lr_fn(steps_per_epoch)
    assert [round(lr_fn(step), 6) for step in (0, 31_900, 32_100, 47_900, 48_100)] == [0.1, 0.1, 0.01, 0.01, 0.001]
    deep = RECIPES["cifar10_resnet110"].lr_fn(steps_per_epoch)
    assert [round(deep(step), 6) for step in (0, 389, 390)] == [0.01, 0.01, 0.1]


def test_a_run_starts_from_weights_with_a_new_head_where_classes_differ(tmp_path):
    torch.manual_seed(1)
    source = resnet_core.resnet18(num_classes=4, in_channels=1)
    info = WeightsInfo(model="resnet18", config={"num_classes": 4, "in_channels": 1}, origin="a test")
    write_weights(tmp_path / "start.safetensors", source.state_dict(), info)
    config = ModelConfig(name="resnet18", weights=str(tmp_path / "start.safetensors"))
    same = make_model(config, num_classes=4, in_channels=1)
    other = make_model(config, num_classes=10, in_channels=1)
    assert torch.equal(same.fc.weight, source.fc.weight)
    assert torch.equal(other.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert other.fc.out_features == 10
    with pytest.raises(ValueError, match=r"belong to resnet18, and model.name is resnet34"):
        make_model(replace(config, name="resnet34"), num_classes=4, in_channels=1)
    with pytest.raises(ValueError, match="take images of 1 channels, and the data have 3"):
        make_model(config, num_classes=4, in_channels=3)


def test_small_images_are_a_setting_of_the_recipe_which_its_weights_must_share(tmp_path):
    config = ModelConfig(name="resnet18", small_images=True)
    model = make_model(config, num_classes=4, in_channels=1)
    assert has_small_stem(model)
    with pytest.raises(ValueError, match="cifar_resnet20 is made for small images as it is; set it to False"):
        replace(config, name="cifar_resnet20")

    small = replace(config, weights=str(tmp_path / "small.safetensors"))
    info = WeightsInfo(model="resnet18", config={"num_classes": 4, "in_channels": 1, "small_images": True})
    write_weights(small.weights, model.state_dict(), info)
    assert torch.equal(make_model(small, num_classes=4, in_channels=1).conv1.weight, model.conv1.weight)
    for wrong, is_small in ((replace(small, small_images=False), True), (replace(config, weights="resnet18"), False)):
        with pytest.raises(ValueError, match=f"small_images={is_small}, .*; set model.small_images to {is_small}, or"):
            make_model(wrong, num_classes=4, in_channels=1)


def test_a_run_starts_from_one_of_several_networks_in_a_file(tmp_path):
    source = resnet_core.cifar_resnet20(4)
    a = {f"x.{name}": value for name, value in source.state_dict().items()}
    b = {f"y.{name}": value + 1 for name, value in source.state_dict().items()}
    torch.save({"a": a, "b": b}, tmp_path / "two.pth")
    config = ModelConfig(name="cifar_resnet20", weights=str(tmp_path / "two.pth"))
    with pytest.raises(ValueError, match=r"choose one with --key a; --key b, .*`train`, write them as --model\.key"):
        make_model(config, num_classes=4, in_channels=3)
    for choice in ({"key": "a"}, {"prefix": "x."}):
        model = make_model(replace(config, **choice), num_classes=4, in_channels=3)
        assert torch.equal(model.fc.weight, source.fc.weight)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet50", {"stride_in_1x1": True}),
        ("cifar_resnet20", {"shortcut": "B"}),
        ("resnet18", {"small_images": True}),
    ],
)
def test_a_run_from_weights_of_a_variant_is_read_as_that_variant_without_them(name, arguments, tmp_path):
    """A bottleneck's stride lies on another convolution in v1, and no shape of the weights shows it."""
    start, out = tmp_path / "start.safetensors", tmp_path / "run"
    config = {"num_classes": 3, **arguments}
    write_weights(
        start, get_model(name, **config).state_dict(), WeightsInfo(model=name, config=config, origin="a test")
    )
    data = DataConfig(name="image_folder", path=small_images(tmp_path / "images"), global_batch=4, train_size=32)
    small = arguments.get("small_images", False)
    model, slow = ModelConfig(name=name, weights=str(start), small_images=small), replace(TINY.optimizer, lr=1e-3)
    recipe = replace(TINY, model=model, data=data, optimizer=slow)  # a faster one can end in nan
    run(recipe, out)
    start.unlink()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    variant = get_model(name, num_classes=2, **arguments)
    load_weights(variant, out / "model.safetensors")
    found = load_run(out).model(images)
    assert torch.equal(found, variant.eval()(images))
    assert found.shape == (2, 2)
    assert run(recipe, out)["count"] == 8  # finished: it is not begun again, and asks for no weights
    for part in ("train", "test"):
        shutil.copytree(tmp_path / "images" / part / "dog", tmp_path / "images" / part / "ape")
    with pytest.raises(
        ValueError, match=r"not fit the run's recipe and data \(num_classes 2 there and 3 here; classes .*\); correct"
    ):
        load_run(out)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("cifar_resnet20", {"groups": 2}),
        ("resnet18", {"replace_stride_with_dilation": [True, True, True]}),
        ("resnet50", {"groups": 1 << 20, "width_per_group": 1 << 20}),
        ("resnet18", {"block": "Bottleneck"}),
    ],
)
def test_weights_that_say_of_themselves_what_cannot_be_are_named(name, config, tmp_path):
    start = tmp_path / "start.safetensors"
    info = WeightsInfo(model=name, config={"num_classes": 10, "in_channels": 1, **config}, origin="a test")
    write_weights(start, get_model(name, num_classes=10, in_channels=1).state_dict(), info)
    with pytest.raises(ValueError, match=r"start.safetensors(: .*| sets .*)"):
        claim(replace(TINY, model=ModelConfig(name=name, weights=str(start))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_any_number_of_processes_evaluates_but_training_is_refused_before_it_begins(tmp_path):
    shares = [make_loaders(TINY, World(rank=rank, size=7))[2] for rank in range(7)]
    assert sum(len(labels) for share in shares for _, labels in share) == 360
    with pytest.raises(ValueError, match="global batch of 64 cannot be split equally over 7 processes"):
        claim(TINY, tmp_path / "run", processes=7)
    assert not (tmp_path / "run").exists()
