"""`resnet-core compare` as people type it."""

import json
import subprocess
import sys

import pytest

from resnet_core.cli.main import main
from resnet_core.comparison.compare import FAST_RUNGS

MINE = """
import resnet_core
print("a line of my own")
def net(num_classes=7):
    return resnet_core.cifar_resnet20(num_classes=num_classes, shortcut="B", in_channels=1)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.usefixtures("mine")
def test_a_file_is_enough(capsys):
    assert main(["compare", "mine.py", "--fast", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)  # what the file prints is not in it
    assert result["reference"].startswith("cifar_resnet20(shortcut='B', num_classes=7, in_channels=1), the nearest")
    assert [rung["name"] for rung in result["rungs"]] == list(FAST_RUNGS)
    assert "a line of my own" in printed.err


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        (("mine.py:net(3)", "cifar_resnet20(shortcut='B')"), "271,731"),
        (("cifar_resnet20", "./mine.py"), "269,239 and 271,991"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_a_bare_name_of_ours_takes_the_others_classes_and_channels(words, counts, capsys):
    equal = "and" not in counts
    assert main(["compare", *words, "--fast", "--diagnosis-seconds", "0", "--batch", "3"]) == (0 if equal else 1)
    assert f"{counts}\n" in capsys.readouterr().out


@pytest.mark.usefixtures("mine")
def test_progress_is_shown_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["compare", "mine.py", "--fast"]) == 0
    shown = capsys.readouterr().err
    assert "\r\033[Klogits: equal" in shown
    assert shown.endswith("\r\033[K")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine.py:nett"], "resnet-core: mine.py has no nett; did you mean net?"),
        (["mine.py", "resnet1"], "unknown model 'resnet1'; did you mean"),
        (["mine.py:net(classes=3)"], "net takes num_classes"),
        (["mine.py", "--fast", "--all"], "leave one of the two out"),
        (["mine.py", "--image-size", "0"], "must be at least 1"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_a_mistake_in_typing_is_one_line(words, message, capsys):
    assert main(["compare", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "line of my own" not in line]
    assert message in line


def test_a_typing_error_loads_little_beyond_torch():
    code = (
        "import sys; from resnet_core.cli.main import main; status = main(['compare', 'torchvision:resnet81'])\n"
        "rooms = {f'resnet_core.{room}' for room in ('data', 'exercises', 'recipes', 'runs', 'train', 'weights')}\n"
        "print(status, ({'torchvision', 'timm', 'sympy', 'torch._dynamo', 'matplotlib'} | rooms) & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "2 set()\n"
    assert "did you mean resnet18" in run.stderr
