"""README and docs are true: their code runs, their tables are computed here, their commands print what is shown."""

import argparse
import ast
import contextlib
import difflib
import inspect
import io
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.transforms.v2.functional import to_pil_image

import resnet_core
from resnet_core.cli.errors import DIFFERENT
from resnet_core.cli.parse_train import parse_train
from resnet_core.comparison.compare import ALL_RUNGS
from resnet_core.data import ImageTransform
from resnet_core.models.resnet import TABLE_1, WIDER
from resnet_core.recipes import RECIPES
from resnet_core.weights import write_weights
from resnet_core.weights.convert import convert

ROOT = Path(__file__).parent.parent
BUILT = {"_build", "figures"}  # not written by hand
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if not BUILT & set(path.relative_to(ROOT).parts)),
]
DIGITS = "resnet-core train digits --processes 2 --out runs/digits"


def fenced(language):
    """(page, block) of every fenced block in that language."""
    for page in PAGES:
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL):
            yield pytest.param(page, block, id=f"{page.name}: {block.splitlines()[0][:50]}")


def commands():
    """(page, command, the lines shown below it) of every line `$ command` in a console block."""
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, flags=re.MULTILINE):
                yield pytest.param(page, command, shown, id=f"{page.name}: {command}")


@pytest.fixture(scope="module")
def workplace(digits_run, tmp_path_factory):
    """A folder in which runs/digits is the finished run, digit.png one of its test images, fixed.py our ResNet.

    imagenet holds as many classes as ImageNet, of one image under many names; photos has 10 classes of images.
    """
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "runs").mkdir()
    (folder / "runs" / "digits").symlink_to(digits_run[0])
    pixels = resnet_core.data.load_digits().test.images[0]
    to_pil_image(pixels).save(folder / "digit.png")
    (folder / "fixed.py").write_text(inspect.getsource(resnet_core.models.resnet))
    (folder / "people.py").symlink_to(ROOT / "parity" / "patients" / "people.py")
    for part, images in (("train", 3), ("val", 1)):
        for number in range(1000):
            images_of_class = folder / "imagenet" / part / f"n{number:08d}"
            images_of_class.mkdir(parents=True)
            for image in range(images):
                (images_of_class / f"{image}.jpg").hardlink_to(folder / "digit.png")
    for part, number, image in itertools.product(("train", "val"), range(10), range(7)):
        (folder / "photos" / part / f"kind{number}").mkdir(parents=True, exist_ok=True)
        (folder / "photos" / part / f"kind{number}" / f"{image}.png").symlink_to(folder / "digit.png")
    write_brought_files(folder)
    return folder


def write_brought_files(folder):
    """The files that somebody brings to docs/weights.md, and what its commands make of them."""
    state = resnet_core.cifar_resnet20().state_dict()
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    body |= {"fc.0.weight": torch.ones(64, 64), "fc.2.weight": torch.ones(8, 64)}
    queries = {f"module.encoder_q.{name}": value for name, value in body.items()}
    keys = {f"module.encoder_k.{name}": value + 1 for name, value in body.items()}
    with torch.device("meta"):
        resnet50 = resnet_core.resnet50().state_dict()
    files = {
        "model_best.pth.tar": {
            "epoch": 90,
            "state_dict": {f"module.{name}": value for name, value in state.items()},
            "args": argparse.Namespace(lr=0.1),
        },
        "moco.pth.tar": {"state_dict": queries | keys},
        "ema.pth": {"model": state, "model_ema": {name: value * 2 for name, value in state.items()}},
        "lightning_logs/version_0/checkpoints/epoch=9.ckpt": {"state_dict": {f"net.{n}": v for n, v in state.items()}},
        "other.pth": nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).state_dict(),
        "r50.pth": {
            name: torch.zeros(each.shape, dtype=torch.float16 if each.is_floating_point() else each.dtype)
            for name, each in resnet50.items()
        },
    }
    (folder / "lightning_logs" / "version_0" / "checkpoints").mkdir(parents=True)
    for name, content in files.items():
        torch.save(content, folder / name)

    timm = folder / "timm_folder"
    timm.mkdir()
    write_weights(timm / "model.safetensors", resnet_core.resnet18(num_classes=2).state_dict())
    described = {"architecture": "resnet18", "num_classes": 2, "label_names": ["cat", "dog"]}
    (timm / "config.json").write_text(json.dumps(described))
    sizes = ImageTransform(resize_size=32, crop_size=32)
    convert(folder / "model_best.pth.tar", folder / "mine.safetensors", transform=sizes)


def test_blocks_are_of_known_languages():
    for page in PAGES:
        languages = set(re.findall(r"^```([^{\n].*)$", page.read_text(), flags=re.MULTILINE))
        assert languages <= {"python", "console", "yaml"}, page


# Has torch, and runs each line of its input, a JSON string of code, in a fork of its own; answers with the exit status.
FORKING = """
import json, os, sys, traceback
import torch, torchvision
for line in sys.stdin:
    child = os.fork()
    if not child:
        for name, stream in (("printed", 1), ("errors", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        status = 0
        try:
            exec(json.loads(line), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)  # to take torch apart would cost a second of each program
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run_python(workplace):
    """Runs code in the workplace as a program of its own would run that has nothing imported but torch."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=workplace
    ) as process:

        def run(code):
            print(json.dumps(code), file=process.stdin, flush=True)
            status = int(process.stdout.readline())
            printed, errors = ((workplace / name).read_text() for name in ("printed", "errors"))
            return subprocess.CompletedProcess(code, status, printed, errors)

        yield run


# What torch 2.11 warns of, of its own code.
TORCH_2_11 = "warnings.filterwarnings('ignore', '`torch.jit.script|The given buffer is not writable')"


@pytest.mark.parametrize(("page", "block"), list(fenced("python")))
def test_python_runs_and_says_what_its_comments_say(page, block, run_python, pytestconfig):
    checks = [
        f"assert list({name}.shape) == [{shape}]" for name, shape in re.findall(r"# (\w+) \[(.*)\]$", block, re.M)
    ]
    code = f"import warnings; warnings.simplefilter('error'); {TORCH_2_11}\n{block}" + "\n".join(checks)
    ran = run_python(code)
    assert ran.returncode == 0, ran.stderr
    expected = re.findall(r"^print\(.*\)  # (.*)$", block, re.M)
    printed = ran.stdout.splitlines()[-len(expected) :]
    if expected and printed != expected and pytestconfig.getoption("write_outputs"):
        lines = iter(printed)
        replace(page, block, re.sub(r"^(print\(.*\)  # ).*$", lambda found: found[1] + next(lines), block, flags=re.M))
        return
    assert printed == expected or not expected


def replace(page, old, new):
    """Writes what a page shows anew: `make docs-output`."""
    text = page.read_text()
    assert old in text
    page.write_text(text.replace(old, new, 1))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on fewer cores than the page's machine has
@pytest.mark.parametrize(("page", "command", "shown"), list(commands()))
def test_command_works_and_prints_what_is_shown(
    page, command, shown, workplace, digits_run, cli, monkeypatch, pytestconfig
):
    words = shlex.split(command)
    if words[0] == "make":
        planned = subprocess.run(["make", "--dry-run", "--directory", ROOT, words[1]], capture_output=True, text=True)
        assert planned.returncode == 0, planned.stderr
        printed = digits_run[1].stdout.replace(str(digits_run[0]), "runs/digits") + "runs/digits/curves.png\n"
        assert words[1] != "demo" or DIGITS in planned.stdout
    elif command == DIGITS:
        printed = digits_run[1].stdout
    elif words[0] == "torchrun":
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
        finished = subprocess.run([*launcher, *words[1:]], capture_output=True, text=True, cwd=workplace)
        assert finished.returncode == 0, finished.stderr
        printed = finished.stdout
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / words[2].replace(".", "/")).exists() or (ROOT / f"{words[2].replace('.', '/')}.py").exists()
        printed = ""
    else:
        assert words[0] == "resnet-core"
        monkeypatch.chdir(workplace)
        if words[1] == "convert" and "--help" not in words:
            (workplace / words[3]).unlink()
        finished = cli(*words[1:])
        differs = any(words in shown for words in ("is not fixed yet", "is not right yet", "likely cause"))
        assert finished.returncode == (DIFFERENT if differs else 0), finished.stderr
        printed = finished.stdout
    lines = [as_pattern(line) for line in shown.splitlines() if line != "..."]
    missing = [line for line in lines if line not in map(as_pattern, printed.splitlines())]
    if missing and pytestconfig.getoption("write_outputs"):
        replace(page, f"$ {command}\n{shown}", f"$ {command}\n{nearest_lines(shown, printed, missing)}")
        return
    assert missing == []


def nearest_lines(shown, printed, missing):
    """The lines shown, each that is missing replaced by the most similar one that was printed, if one is similar."""
    lines = []
    for line in shown.splitlines():
        if line != "..." and as_pattern(line) in missing:
            lines += difflib.get_close_matches(line, printed.splitlines(), 1, cutoff=0.5)
        else:
            lines.append(line)
    return "".join(f"{line}\n" for line in lines)


def as_pattern(line):
    """A line with what another machine may print otherwise, times and a share of right answers, taken out."""
    if "images/s" in line or "top-1" in line:
        return re.sub(r"[\d.,]+", "#", line)
    return line


def settings():
    """Every `--section.setting value` that a page names in its text."""
    for page in PAGES:
        for text in re.findall(r"`(--[a-z]+\.[a-z-]+ [^`]*)`", page.read_text()):
            yield pytest.param(text, id=f"{page.name}: {text}")


@pytest.mark.parametrize("text", list(settings()))
def test_a_setting_that_a_page_names_is_one(text):
    """Not of every recipe: some settings exclude each other."""

    def taken_by(name):
        with contextlib.suppress(ValueError, SystemExit), contextlib.redirect_stderr(io.StringIO()):
            return parse_train([name, *shlex.split(text.replace("DIR", "folder"))])

    assert any(taken_by(name) for name in RECIPES)


def rows(page, header):
    """The cells of the table whose header line starts with `header`, one list a row."""
    lines = (ROOT / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header)) + 2
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            return table
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def test_the_table_of_the_family_is_what_the_code_gives():
    report = json.loads((ROOT / "docs/report/parity.json").read_text())["sections"]
    statuses = {
        row["model"]: Counter(rung["status"] for rung in row["rungs"]) for row in report["Ours beside torchvision"]
    }
    expected = []
    for name in [*TABLE_1, *WIDER]:
        block, depths = TABLE_1[WIDER[name][0] if name in WIDER else name]
        description = resnet_core.describe(name)
        v1 = description.multiply_adds_by_form.get("v1", description.multiply_adds)
        expected.append(
            [
                f"`{name}`",
                f"{block.__name__} {', '.join(map(str, depths))}",
                f"{description.parameters:,}",
                f"{description.multiply_adds / 1e9:.3f} G",
                f"{v1 / 1e9:.3f} G",
                ", ".join(f"{count} {status}" for status, count in statuses[name].items()),
            ]
        )
        assert statuses[name].total() == 16
    assert rows("README.md", "| model | block, depths |") == expected


def test_the_map_says_of_each_folder_what_its_docstring_says():
    clauses = {cells[0]: cells[1] for cells in rows("README.md", "| folder |")}
    rooms = sorted(path.parent for path in (ROOT / "resnet_core").glob("*/__init__.py"))
    assert set(clauses) == {f"[`{room.name}/`](resnet_core/{room.name})" for room in rooms}
    for room in rooms:
        docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
        assert clauses[f"[`{room.name}/`](resnet_core/{room.name})"] == docstring.splitlines()[0], room.name


def test_the_page_of_parity_lists_every_rung():
    assert [name for name, _ in rows("docs/parity.md", "| rung |")] == list(ALL_RUNGS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\((?!https?:|repository:|explorer:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_first_screen_of_readme_ends_with_the_two_commands():
    first_screen = (ROOT / "README.md").read_text().split("\n## ")[0]
    assert len(first_screen.splitlines()) <= 50
    assert "$ make demo" in first_screen
    assert "$ make test" in first_screen
