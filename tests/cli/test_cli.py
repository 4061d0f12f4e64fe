"""The command line: its listings, and one clear line for every mistake."""

import json
import re
from pathlib import Path

import pytest

import resnet_core
from resnet_core.cli.main import COMMANDS, main
from resnet_core.cli.parse_train import parse_train
from resnet_core.foundation.toml import to_toml
from resnet_core.recipes import RECIPES
from tests.conftest import claim
from tests.data.test_folders import write_images


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +[A-Z]", printed, flags=re.MULTILINE) for name in COMMANDS)
    for words in (["data", "--help"], ["help", "data"]):
        assert main(words) == 0
        listed = re.findall("^  (data [a-z]+)", capsys.readouterr().out, flags=re.MULTILINE)
        assert listed == ["data check", "data resize"]


@pytest.mark.parametrize("name", [*COMMANDS, "train digits"])
def test_every_command_has_help_with_an_example(name, capsys):
    try:
        status = main([*name.split(), "--help"])
    except SystemExit as stop:
        status = stop.code
    assert status == 0
    printed = capsys.readouterr().out
    assert "usage: resnet-core " + name in printed
    if name not in ("recipes", "show"):
        assert f"Example: `resnet-core {name}" in printed


def test_help_does_not_keep_the_line_breaks_of_the_source(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    shown = cli("train", "digits", "--help").stdout
    assert "Empty or none starts from random weights." in shown
    assert "(default: )" not in shown.replace("''", "")
    assert "to --data.train-size;" in " ".join(shown.replace("│", "").split())


@pytest.mark.parametrize("name", ["predict", "embed", "explain", "evaluate", "quantize", "export", "convert"])
def test_what_a_weights_file_rarely_needs_stands_last_in_the_help(name, cli):
    options = re.findall(r"^\W (--[a-z0-9-]+)", cli(name, "--help").stdout, flags=re.MULTILINE)
    assert options[-6:] == ["--model", "--key", "--prefix", "--ignore", "--stride-in-1x1", "--allow-pickle"]
    assert len(options) > 6


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{resnet_core.__version__}\n"


def test_models_lists_names_with_their_parameters_in_the_order_of_table_1(capsys):
    assert main(["models", "resnet*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    assert "resnet50             25,557,032 parameters" in lines


def test_describe_prints_the_table_and_json(capsys):
    assert main(["describe", "resnet18", "--image-size", "64"]) == 0
    assert capsys.readouterr().out == f"{resnet_core.describe('resnet18', 64)}\n"
    assert main(["describe", "resnet18", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 11_689_512


def test_recipes_are_listed_and_shown(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith(
        f"digits{'':<19}cifar_resnet20 on digits, 30 epochs\n{'':<25}source          this project\n"
    )
    assert all(re.search(rf"^{name} ", listed, re.MULTILINE) for name in RECIPES)
    assert main(["show", "digits"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# source          this project\n# published       none\n# reached here    9")
    assert shown.endswith(f"\n{to_toml(RECIPES['digits'])}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian digits", "unknown command 'trian'; did you mean train?"),
        (
            "train",
            "train needs a recipe or a folder of images first; .* lists the recipes; usage: resnet-core train RECIPE",
        ),
        ("data chek x", "unknown command 'data chek'; did you mean data check"),
        ("train --out here", "train needs a recipe or a folder"),
        ("train digit", r"'digit' is neither a recipe nor a folder here; did you mean digits\?"),
        ("train digits --batch-size 8", r"--batch-size, 8; did you mean --batch\?"),
        ("train digits --batch_size 8", r"--batch_size, 8; did you mean --batch\?"),
        ("train digits --num-epochs 8", r"--num-epochs, 8; did you mean --epochs\?"),
        ("train digits --learning-rate 1", r"did you mean --lr\?"),
        ("train digits --optimizer lamb", "did you mean --optimizer.name or"),
        ("--verison", r"unknown command '--verison'; did you mean --version\?"),
        ("show digit", "unknown recipe 'digit'; did you mean digits?"),
        ("describe resnet5", "unknown model 'resnet5'; did you mean resnet50"),
        ("describe resnet50 --image-size 0", "image_size must be at least 1 pixel and at most 32768, got 0"),
        ("export", "export needs WEIGHTS and OUT; `resnet-core export --help` explains"),
        ("describe", "describe needs MODEL; "),
        ("data check", "data check needs DIR; "),
        ("export a b --image-size abc", "--image-size must be a whole number, got 'abc'; "),
        ("compare resnet18 --batch 1", "--batch must be at least 2, got 1"),
        ("describe resnet50 --image-size", "--image-size needs a value; "),
        ("models vgg*", "no model matches 'vgg\\*'"),
        ("models resnext", r"no model matches 'resnext'; did you mean '\*resnext\*'\?"),
        ("evaluate nowhere", "'nowhere' is neither a run's folder, nor a weights file"),
        ("plot nowhere", "nowhere is not a run's folder"),
        (
            "train digits --schedule.warmup-epochs 30",
            r"--schedule.warmup-epochs \(30\) must be less than --train.epochs \(30\)",
        ),
        ("train digits --processes 3", "64 cannot be split equally over 3 processes; use 1 or 2 or 4"),
        ("train digits --processes 128", "64 cannot be split equally over 128 processes"),
        ("train digits --data.global-batch 2000", "2000 is larger than the 1437 samples"),
    ],
)
def test_a_mistake_is_reported_in_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--optimizer.lrr 0.2",
            r"--optimizer\.lrr, 0\.2; did you mean --optimizer\.lr\? `resnet-core train digits --help`",
        ),
        ("--data.flip true", r"invalid choice 'true' for argument '--data.flip'. Expected one of \('True', 'False'\)"),
        ("--optimizer.lr fast", "--optimizer.lr must be a number, got 'fast'"),
        ("--optimizer.lr -1", "optimizer.lr must be positive and finite, got -1.0"),
        ("--optimizer.lr nan", "optimizer.lr must be positive and finite, got nan"),
        ("--optimizer.momentum 1", r"optimizer.momentum must be at least 0 and less than 1, got 1.0"),
        ("--optimizer.weight-decay -1", "--optimizer.weight-decay must be at least 0 and finite, got -1.0"),
        ("--optimizer.momentum 0", "--optimizer.nesterov needs a positive --optimizer.momentum"),
        (
            "--train.precision fp16",
            "must be float32 or bf16, got 'fp16'; fp16 is not offered: its gradients need a loss",
        ),
        ("--train.accumulation 65", "train.accumulation 65 is more parts than the 64 samples that each process has"),
        ("--train.accumulation 64 --model.name resnet18", "compute one image of 16 pixels at a time; .* lower --train"),
        ("--train.sync-batchnorm True", "torch synchronizes BatchNorm only on GPUs"),
        ("--averaging.ema-decay 0.9 --averaging.ema-every-steps 661", "661 is more than the run's 660 steps"),
        (
            "--run.device cuda",
            "device cuda: torch finds no GPU on this machine; use the device cpu",
        ),
        ("--data.train-size-epochs 5", "--data.train-size-epochs 5 changes nothing"),
        (
            "--data.train-size 16 --data.train-size-start 8 --data.train-size-epochs 31",
            "--data.train-size-epochs 31 is more than --train.epochs 30, so images would never reach --data.train-size",
        ),
        (
            "--data.train-size-start 8 --data.train-size 16 --data.train-size-epochs 1",
            "over at least 2 epochs; set it to 0",
        ),
        (
            "--train.accumulation 64 --model.name resnet18 --data.train-size 64 --data.train-size-start 16",
            "one image of 16 pixels",
        ),
        ("--model.weights missing.pth", "missing.pth does not exist"),
        ("--model.weights nowhere", "'nowhere' is neither a run's folder, nor a weights file"),
        (
            "--model.weights resnet18",
            "--model.weights resnet18 belong to resnet18, and --model.name is cifar_resnet20; set --model.name to",
        ),
        ("--train.epochs 0", "train.epochs must be at least 1, got 0"),
        ("--schedule.warmup-epochs -1", "--schedule.warmup-epochs must be at least 0"),
        ("--data.name digit", "unknown dataset 'digit'; did you mean digits"),
        ("--data.global-batch 0", "--data.global-batch must be at least 1, got 0"),
        ("--data.workers -1", "data.workers must be at least 0, got -1"),
        ("--data.train-size-start 8", "--data.train-size-start needs --data.train-size, the size to which images grow"),
        ("--model.name resnet5", "unknown model 'resnet5'; did you mean resnet50"),
        ("--batch 0", "--batch must be at least 1, got 0"),
        ("--epoch 3", "Unrecognized options: --epoch, 3; did you mean --epochs or"),
        ("--optimizer.name adam", "unknown optimizer 'adam'; known are sgd, decoupled_sgd, lamb;"),
        ("30", "'30' is one argument too many"),
        ("--processes 0", "--processes must be at least 1, got 0"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_wrong_setting_is_refused_before_any_work(words, message, dry, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    finished = cli("train", "digits", "--out", "run", *words.split(), *dry)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert re.search(message, line), line
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_hold_the_run_is_refused_before_any_work(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    for out, message in [
        (tmp_path / "file", "is a file, not a folder; choose another folder with --out"),
        (
            tmp_path / "file" / "run",
            r"cannot be written \(Not a directory\); make room there, or choose another",
        ),
        (tmp_path / "mine", "holds other files and no run; choose another folder with --out"),
        ("/proc/run", r"/proc/run cannot be written \(.*\); make room there, or choose another folder"),
    ]:
        assert main(["train", "digits", "--out", str(out), "--processes", "2"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(message, line), line
    assert main(["train", "digits", "--out", str(tmp_path / "mine"), "--dry-run"]) == 2
    assert "holds other files and no run" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_folder_that_holds_another_recipes_run_is_refused_saying_what_differs(dry, capsys, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints" / "step-00000022").mkdir(parents=True)
    (out / "recipe.toml").write_text(to_toml(RECIPES["digits"]))
    assert main(["train", "digits", "--out", str(out), "--optimizer.lr", "0.2", "--seed", "1", *dry]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "holds the run of another recipe (--optimizer.lr is 0.1 there and 0.2 here; seed is 0 there and 1 here)" in line
    )
    assert line.endswith("; choose another folder with --out; --allow-changes continues this run all the same")


def test_a_start_that_failed_leaves_its_folder_free(capsys, tmp_path, monkeypatch):
    def damaged(*arguments, **options):
        raise ValueError("the weights are damaged")

    monkeypatch.setattr("resnet_core.runs.training.make_trainer", damaged)
    out = tmp_path / "run"
    assert main(["train", "digits", "--out", str(out), "--seed", "3"]) == 2
    assert "the weights are damaged" in capsys.readouterr().err
    claim(RECIPES["digits"], out)
    assert (out / "recipe.toml").read_text() == to_toml(RECIPES["digits"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 30", "epoch = 30", "unknown key 'epoch'; did you mean epochs"),
        ("epochs = 30", 'epochs = "30"', "epochs should be of type int, got '30'"),
        ('precision = "float32"', 'precision = "fp16"', "must be float32 or bf16, got 'fp16'; fp16 is not offered"),
        ('device = "auto"', 'device = "tpu"', "device should be 'auto' or 'cpu' or 'cuda', got 'tpu'"),
        ("[data]", "[data", "is not TOML"),
        ('name = "cifar_resnet20"\n', "", "missing name"),
        ("lr = 0.1", "lr = -1.0", "optimizer.lr must be positive"),
    ],
)
def test_a_damaged_recipe_file_is_named(old, new, message, capsys, tmp_path):
    text = to_toml(RECIPES["digits"])
    assert old in text
    (tmp_path / "recipe.toml").write_text(text.replace(old, new))
    assert main(["evaluate", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert "recipe.toml" in line or "optimizer" in line or "train." in line


def test_an_unfinished_run_is_not_evaluated(capsys, tmp_path):
    (tmp_path / "recipe.toml").write_text(to_toml(RECIPES["digits"]))
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "has no model.safetensors: its run is not finished" in capsys.readouterr().err
    assert main(["plot", str(tmp_path)]) == 2
    assert "holds no records yet" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_makes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("[data]\nglobal_batch = 128\n")
    words = ["train", "digits", "--config", "mine.toml", "--processes", "2", "--train.epochs", "3", "--dry-run"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "33: 3 epochs of 11" in printed.out
    assert "2 processes x 64 samples" in printed.out
    assert "note: --data.global-batch is 2 times the recipe's 64" in printed.out
    assert "linear scaling would be --optimizer.lr 0.2" in printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    assert main(["train", "digits", "--config=no.toml", "--dry-run"]) == 2
    assert "no.toml cannot be read (No such file or directory)" in capsys.readouterr().err


def test_short_names_stand_for_the_settings_that_people_change_most():
    train = parse_train(["digits", "--epochs", "5", "--lr=0.05", "--batch", "32", "--model.weights", "none"])
    recipe = train.recipe
    assert (recipe.train.epochs, recipe.optimizer.lr, recipe.data.global_batch) == (5, 0.05, 32)
    assert parse_train(["digits", "--model.weights=none"]).recipe.model.weights == ""
    assert train.advice is None


def test_a_first_try_that_does_not_fit_is_refused_with_the_option_to_change(cli, tmp_path):
    shorter = cli("train", "finetune", "--epochs", 1)
    assert (
        "--schedule.warmup-epochs (1) must be less than --epochs (1); lower it with --schedule.warmup-epochs 0.1"
        in shorter.stderr
    )
    larger = cli("train", "digits", "--batch", 2000, "--out", tmp_path / "run", "--dry-run")
    assert "2000 is larger than the 1437 samples; give at most as many, such as --batch 359" in larger.stderr


def test_a_folder_in_place_of_a_recipe_is_finetuned_on(tmp_path, monkeypatch, cli):
    write_images(tmp_path / "flowers" / "train", {"rose": 3, "tulip": 3})
    write_images(tmp_path / "flowers" / "val", {"rose": 1, "tulip": 1})
    monkeypatch.chdir(tmp_path)
    words = ("--model.name", "cifar_resnet20", "--model.weights", "none", "--batch", 2, "--dry-run")
    planned = cli("train", "flowers", *words)
    assert "data           6 images of 2 classes to train on, 2 images of 2 classes to evaluate on" in planned.stdout
    train = parse_train(["flowers/"])
    assert (train.recipe.model, train.out) == (RECIPES["finetune"].model, Path("runs/flowers"))
    (tmp_path / "digits").mkdir()
    assert parse_train(["digits"]).recipe == RECIPES["digits"]  # a recipe by its name
    (tmp_path / "flowers" / "recipe.toml").touch()
    assert "flowers is a run's folder; continue it with" in cli("train", "flowers").stderr
    assert "'flower' is neither a recipe nor a folder here; did you mean flowers?" in cli("train", "flower").stderr
    (tmp_path / ".flower").mkdir()
    assert "'flow' is neither a recipe nor a folder here; did you mean flowers?" in cli("train", "flow").stderr
    assert "flowers/red does not exist; name a recipe, a folder" in cli("train", "flowers/red").stderr
