"""Each exercise is broken as its name and its symptoms say; the grade distinguishes broken files from fixed ones."""

import inspect
import re
from functools import cache

import pytest
import torch
from torch import nn

import resnet_core
from parity.patients.plants import PLANTS
from resnet_core.cli.main import main
from resnet_core.comparison.diagnosis import diagnose
from resnet_core.comparison.trace import calibrate
from resnet_core.exercises import grade, grader, handout
from resnet_core.exercises.catalog import BLOCKS, EXERCISES, LEGEND
from resnet_core.exercises.grader import images, small_network
from resnet_core.exercises.handout import broken_source
from resnet_core.exercises.symptoms import (
    LastMap,
    Logits,
    Misshapen,
    Missing,
    OutputsSumToOne,
    Parameters,
    RandomInTraining,
    RunningMeans,
    Unexpected,
)
from resnet_core.exercises.tasks import TASKS
from resnet_core.models import resnet

OURS = vars(resnet)
NUMBERS = {mistake: number for number, mistake in enumerate(EXERCISES, 1)}


def run_source(source):
    space = {"__name__": "exercise"}
    exec(compile(source, "exercise", "exec"), space)
    return space


def on_meta(space):
    with torch.device("meta"):
        return space["ResNet"](*space["TABLE_1"]["resnet50"])


OURS_ON_META = on_meta(OURS)


def parameters(space):
    return sum(parameter.numel() for parameter in on_meta(space).parameters())


def last_map(space):
    return tuple(on_meta(space).forward_features(torch.empty(1, 3, 224, 224, device="meta")).shape[2:])


def vary_norms(model):
    """Gives the norms other scales and shifts, as training does: with scale 1 and shift 0 some mistakes do not show."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator)
            module.bias.data = 0.2 * torch.randn(module.bias.shape, generator=generator)


@cache
@torch.no_grad()
def right():
    """State dict, in float64, and logits of our small network of Bottlenecks as if trained."""
    model = small_network(OURS, "Bottleneck")
    vary_norms(model)
    model = calibrate(model.double(), images().double())
    return model.state_dict(), model(images().double())


@torch.no_grad()
def logits(space):
    """Of the small network with our weights."""
    model = small_network(space, "Bottleneck").double().eval()
    model.load_state_dict(right()[0])
    return model(images().double())


def measured_percent_off(space):
    return 100 * ((logits(space) - right()[1]).norm() / right()[1].norm()).item()


def running_means_in_training(space):
    """Of the first norm, after one forward pass."""
    model = small_network(space, "BasicBlock")
    with torch.no_grad():
        model(images())
    return model.bn1.running_mean


def assert_seen(symptom, space):
    """Measures a symptom in the networks of a broken source."""
    match symptom:
        case Parameters(count):
            assert parameters(space) == count
        case LastMap(side):
            assert last_map(space) == (side, side)
        case Missing(tensor):
            assert tensor in on_meta(space).state_dict().keys() - OURS_ON_META.state_dict().keys()
        case Unexpected(tensor):
            assert tensor in OURS_ON_META.state_dict().keys() - on_meta(space).state_dict().keys()
        case Misshapen(tensor):
            assert on_meta(space).state_dict()[tensor].shape != OURS_ON_META.state_dict()[tensor].shape
        case Logits(percent_off):
            assert measured_percent_off(space) == pytest.approx(percent_off, rel=0.05)
        case OutputsSumToOne():
            torch.testing.assert_close(logits(space).sum(1), torch.ones(2).double())
        case RandomInTraining():
            assert measured_percent_off(space) == 0
            model = small_network(space, "Bottleneck")
            assert not torch.allclose(model(images()), model(images()))
        case RunningMeans(times):
            assert measured_percent_off(space) == 0
            means, ours = running_means_in_training(space), running_means_in_training(OURS)
            torch.testing.assert_close(means, float(times) * ours)
        case _:
            raise AssertionError(f"nothing measures {symptom!r}")


@pytest.mark.parametrize("mistake", EXERCISES)
def test_the_doctor_names_the_mistake_of_a_broken_source(mistake):
    block = EXERCISES[mistake].blocks[0]
    patient = small_network(run_source(broken_source(mistake)), block)
    diagnosis = diagnose(patient, small_network(OURS, block), images())
    assert diagnosis.mistakes == (mistake,), diagnosis


@pytest.mark.parametrize("mistake", EXERCISES)
def test_each_symptom_is_measured(mistake):
    space = run_source(broken_source(mistake))
    for symptom in EXERCISES[mistake].symptoms:
        assert_seen(symptom, space)


def test_the_legend_says_what_is_right():
    right = f"{resnet_core.describe('resnet50').parameters:,} and {'x'.join(map(str, last_map(OURS)))} are right"
    assert right in LEGEND[0]


@pytest.mark.parametrize("mistake", EXERCISES)
def test_an_exercise_is_a_small_edit_and_does_not_name_the_mistake(mistake):
    text = handout(NUMBERS[mistake], "exercise.py")
    assert mistake in PLANTS
    assert mistake.lower() not in " ".join(text.lower().replace("#", "").split())
    source = inspect.getsource(resnet)
    for old, new in EXERCISES[mistake].edits:
        assert source.count(old) == 1, old
        assert max(len(line) for line in new.split("\n")) <= 120
    assert text.endswith(broken_source(mistake))


def test_an_exercise_for_bottlenecks_leaves_networks_of_basic_blocks_right():
    ours = small_network(OURS, "BasicBlock").eval()
    for mistake, exercise in EXERCISES.items():
        if exercise.blocks != BLOCKS:
            theirs = small_network(run_source(broken_source(mistake)), "BasicBlock").eval()
            assert torch.equal(theirs(images()), ours(images())), mistake


@pytest.fixture
def student(tmp_path):
    """Writes our source with (old, new) edits as a student's file."""

    def write(*edits):
        source = inspect.getsource(resnet)
        for old, new in edits:
            assert old in source
            source = source.replace(old, new)
        path = tmp_path / "mine.py"
        path.write_text(source)
        return path

    return write


def test_our_own_source_is_graded_as_fixed(student, capsys):
    path = student()
    assert main(["grade", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path} is fixed: ")


def test_an_exercise_goes_from_the_list_to_a_file_to_its_grade(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grader, "BLOCKS", ("BasicBlock",))
    mistake = "no stem ReLU"
    assert main(["exercise"]) == 0
    listed = capsys.readouterr().out
    assert f"{NUMBERS[mistake]:>2}  both        {EXERCISES[mistake].symptom}\n" in listed
    assert not [mistake for mistake in EXERCISES if mistake in listed]
    assert all(f"\n{name:<12}{task.title}\n" in listed for name, task in TASKS.items())
    for words in (["exercise", "list"], ["exercises"]):
        assert main(words) == 0
        assert capsys.readouterr().out == listed
    assert main(["exercise", str(NUMBERS[mistake])]) == 0
    name = f"exercise_{NUMBERS[mistake]:02}.py"
    assert capsys.readouterr().out == f"{name}: fix its mistake, then run `resnet-core grade {name}`\n"

    assert main(["grade", name]) == 1
    hint = capsys.readouterr().out
    number = r"mean \S+, norm \S+"
    values = [rf"  {whose}: +layer1\.0\.conv1 reads \[2, 64, 16, 16\], {number}\n" for whose in ("yours", "ours")]
    assert re.fullmatch(f"{name} is not fixed yet; it first differs at\nBasicBlock: relu\n{''.join(values)}", hint)
    assert main(["grade", name, "--tell"]) == 1
    diagnosis = f"{mistake}: the reference with this mistake computes exactly what this network does"
    assert capsys.readouterr().out == f"{hint}  {diagnosis}\n"

    ((old, new),) = EXERCISES[mistake].edits
    (tmp_path / name).write_text((tmp_path / name).read_text().replace(new, old))
    assert main(["grade", name]) == 0


@pytest.mark.parametrize(
    ("mistake", "place"),
    [
        ("BatchNorm momentum 0.9", "BatchNorm statistics, bn1.running_"),
        ("BatchNorm eps 1.001e-5", "bn1"),
    ],
)
def test_a_mistake_that_float32_hides_is_found(mistake, place, tmp_path, monkeypatch):
    monkeypatch.setattr(grader, "BLOCKS", ("BasicBlock",))
    path = tmp_path / "mine.py"
    path.write_text(broken_source(mistake))
    (found,) = grade(path)
    assert found.where.startswith(f"BasicBlock: {place}")
    assert found.evidence


def test_a_mistake_that_shows_only_with_trained_norms_is_found(student, monkeypatch):
    monkeypatch.setattr(grader, "BLOCKS", ("BasicBlock",))
    (found,) = grade(
        student(
            (
                "self.relu(self.bn1(self.conv1(x)))  #",
                "self.relu(self.bn1(self.conv1(x)) * self.bn1.weight.view(-1, 1, 1))  #",
            )
        )
    )
    assert found.where == "BasicBlock: relu"


def test_a_wrong_row_of_the_table_is_found(student, monkeypatch):
    monkeypatch.setattr(grader, "BLOCKS", ())
    (found,) = grade(student(('"resnet50": (Bottleneck, (3, 4, 6, 3))', '"resnet50": (Bottleneck, (3, 4, 5, 3))')))
    assert str(found) == 'TABLE_1["resnet50"]\n  yours: Bottleneck (3, 4, 5, 3)\n  ours:  Bottleneck (3, 4, 6, 3)'


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        (('mode="fan_out"', 'mode="fan_in"'), "weights from the same seed, conv1.weight"),
        (("self.fc", "self.head"), "state dict, fc.weight"),
    ],
)
def test_other_initial_weights_and_names_are_found(edit, place, student, monkeypatch):
    monkeypatch.setattr(grader, "BLOCKS", ("BasicBlock",))
    (found,) = grade(student(edit))
    assert found.where == f"BasicBlock: {place}"


@pytest.mark.parametrize(
    ("old", "new", "line_of", "message"),
    [
        ("        x = self.fc(x)", "        x = self.fc(x", "x = self.fc(x", "SyntaxError: '(' was never closed"),
        ("        x = self.avgpool(x)", "        x = 1 / 0", "x = 1 / 0", "ZeroDivisionError: division by zero"),
        (
            "e = block.expansion",
            "e = block.expanse",
            "e = block.expanse",
            "AttributeError: type object 'BasicBlock' has",
        ),
        ("x = torch.flatten(x, 1)", "pass", "x = self.fc(x)", "RuntimeError: "),
        ("TABLE_1 = {", "import nothing_of_this_name\nTABLE_1 = {", "import nothing", "ModuleNotFoundError: No module"),
        ("TABLE_1 = {", "raise SystemExit(0)\nTABLE_1 = {", "raise SystemExit", "SystemExit: 0"),
    ],
)
def test_a_file_that_fails_is_reported_in_one_line_with_its_line(old, new, line_of, message, student, capsys):
    path = student((old, new))
    line = next(number for number, text in enumerate(path.read_text().split("\n"), 1) if line_of in text)
    assert main(["grade", str(path)]) == 2
    reported = capsys.readouterr().err
    assert reported.startswith(f"resnet-core: {path}, line {line}: {message}")
    assert reported.endswith("; fix that and grade the file again\n")
    assert reported.count("\n") == 1


def test_other_errors_are_reported_in_one_line(student, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exercise_01.py").write_text("kept")
    lacking = student(("Bottleneck", "BottleNeck"))
    for words, message in {
        f"grade {lacking}": f"{lacking} lacks Bottleneck; did you mean BottleNeck?",
        "grade nowhere.py": "nowhere.py does not exist; `resnet-core exercise NUMBER` writes an exercise",
        "exercise 1": "exercise_01.py already exists and may hold your work; choose another file with --out",
        "exercise 99": f"exercises are numbered from 1 to {len(EXERCISES)}, got 99; choose one of these",
        "exercise nope": "'nope' is not the number of an exercise; `resnet-core exercise list` shows them",
        "exercise block": "'block' is not the number of an exercise; "
        "`resnet-core exercise --task block` writes that task",
        "exercise --out here.py": "--out here.py needs the exercise's number before it, or --task",
    }.items():
        assert main(words.split()) == 2
        assert capsys.readouterr().err == f"resnet-core: {message}\n"
    assert (tmp_path / "exercise_01.py").read_text() == "kept"
    assert main(["exercise", "1", "--out", "other.py"]) == 0
    assert (tmp_path / "other.py").read_text() == handout(1, "other.py")
