"""What an error of a weights file says to do, done: each command and each line of Python is taken from the message."""

import gzip
import itertools
import json
import re
import shlex
import subprocess
import tarfile
import warnings
import zipfile

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import resnet_core
from resnet_core.foundation.precision import same_bits
from resnet_core.weights import (
    WeightsInfo,
    inspect_weights,
    load_model,
    load_weights,
    read_info,
    read_weights,
    write_weights,
)
from resnet_core.weights.convert import convert
from resnet_core.weights.names import their_names
from resnet_core.weights.pretrained import names_a_file
from tests.weights.kinds import body, prefixed


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet_core.cifar_resnet20().eval()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory with an image and a folder of images, for 10 classes."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("IMAGE", format="PNG")
    for part, number in itertools.product(("train", "val"), range(10)):
        place = tmp_path / "FOLDER" / part / f"kind{number}"
        place.mkdir(parents=True)
        (place / "a.png").symlink_to(tmp_path / "IMAGE")


@pytest.fixture
def follow(cli):
    """Runs the commands of a message, each as it is typed."""

    def run(text):
        commands = re.findall(r"`(resnet-core [^`]*)`", text) or [text]
        for command in (each.strip() for line in commands for each in line.split("&&")):
            words = shlex.split(command.replace("PIXELS", "32"))
            assert words[0] == "resnet-core", command
            dry = ["--dry-run", "--data.global-batch", 2] if words[1] == "train" else []
            done = cli(*words[1:], *dry)
            assert done.returncode == 0, (command, done.stderr)

    return run


def refused(call, *arguments, **keywords):
    """The message of a refusal."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call(*arguments, **keywords)
    return str(error.value)


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shifted(state, prefix=""):
    """Another network's weights."""
    return {f"{prefix}{name}": value + 1 for name, value in state.items()}


# What is printed by inspect: every command and every line of Python of every network.

BROUGHT = {
    "a classifier": lambda s: s,
    "wrapped": lambda s: {"model_state_dict": prefixed(s, "module.")},
    "extra tensors": lambda s: s | {"criterion.a": torch.ones(1), "criterion.b": torch.ones(1), "scale": torch.ones(1)},
    "a layer behind the classifier": lambda s: (
        prefixed(s, "0.") | {"1.weight": torch.ones(3, 10), "1.bias": torch.ones(3)}
    ),
    "names that are patterns": lambda s: s | {"a[0].x": torch.ones(1), "a[0].y": torch.ones(1), "b*": torch.ones(1)},
    "the same network twice": lambda s: prefixed(s, "model.") | prefixed(s, "attacker.model."),
    "two networks": lambda s: prefixed(s, "student.") | shifted(s, "teacher."),
    "two keys": lambda s: {"a": s, "b": shifted(s)},
    "two averages": lambda s: {"model": shifted(s), "ema": s, "ema_slow": shifted(shifted(s))},
    "raw and averaged": lambda s: {"model": shifted(s), "model_ema": s},
    "a body": lambda s: {"encoder": body(s)},
    "two bodies": lambda s: prefixed(body(s), "online.") | shifted(body(s), "momentum."),
    "grey images": lambda s: resnet_core.cifar_resnet20(in_channels=1).state_dict(),
    "a body for small images": lambda s: body(resnet_core.resnet18(small_images=True).state_dict()),
}


@pytest.mark.parametrize("kind", BROUGHT)
def test_what_inspect_prints_works(kind, network, follow, tmp_path, recwarn):
    torch.save(BROUGHT[kind](network.state_dict()), "a file.tar")
    found = inspect_weights("a file.tar")
    shown = str(found).splitlines()
    lines = {
        row: [line.removeprefix(row).strip() for line in shown if line.startswith(row)] for row in ("command", "Python")
    }
    assert len(found.candidates()) == {"two averages": 3}.get(kind, 2 if kind.startswith("two") else 1)
    assert len(lines["command"]) == len(lines["Python"]) == len(found.candidates())
    for command in lines["command"]:
        follow(command)
        for made in tmp_path.glob("*.safetensors"):
            made.unlink()
    for line, expected in zip(lines["Python"], found.candidates(), strict=True):
        names = {"resnet_core": resnet_core}
        exec(line, names)
        state = names["network"].state_dict()
        assert all(same_bits(state[name], value) for name, value in expected.tensors.items())


def test_a_v1_library_s_file_is_loaded_as_v1(follow):
    with torch.device("meta"):
        state = resnet_core.resnet50().state_dict()
    theirs = their_names("detectron2", [name for name in state if "num_batches" not in name])
    torch.save({name: torch.zeros(state[ours].shape, dtype=torch.float16) for ours, name in theirs.items()}, "R-50.pkl")
    found = inspect_weights("R-50.pkl")
    assert found.command() == "resnet-core predict R-50.pkl IMAGE --stride-in-1x1"
    assert found.python().endswith("load_model('R-50.pkl', stride_in_1x1=True)")
    follow(found.command())
    follow("resnet-core convert R-50.pkl NAME.safetensors --stride-in-1x1")
    assert read_info("NAME.safetensors").transform is None  # these take BGR images


def test_a_v1_network_under_other_names_is_loaded_as_the_caller_says(follow):
    with torch.device("meta"):
        state = resnet_core.resnet50().state_dict()
    torch.save(
        {name: torch.zeros(value.shape, dtype=torch.float16) for name, value in state.items() if value.dim()}, "x"
    )
    found = inspect_weights("x", stride_in_1x1=True)
    assert found.command() == "resnet-core predict x IMAGE --stride-in-1x1"
    assert any("v1, as you say" in note for note in found.cannot_show())
    assert any("whether strides became dilations" in note for note in found.cannot_show())
    dilated = resnet_core.resnet50(weights="x", replace_stride_with_dilation=[False, False, True])
    assert dilated.layer4[1].conv2.dilation == (2, 2)
    assert "stride" not in inspect_weights("x").command()


# What predict, load_model and load_weights refuse.


def test_several_networks(network, follow):
    torch.save(prefixed(network.state_dict(), "student.") | shifted(network.state_dict(), "teacher."), "two.pth")
    message = refused(load_model, "two.pth")
    choices = re.findall(r"--prefix \S+\.", message)
    assert choices == ["--prefix student.", "--prefix teacher."]
    for options in choices:
        follow(f"resnet-core predict two.pth IMAGE {options}")
    (keyword,) = re.findall(r"prefix='\S+'", message)
    eval(f"load_model('two.pth', {keyword})")
    assert message.endswith("for `train`, write them as --model.prefix")
    train = "resnet-core train finetune --model.name cifar_resnet20 --data.path FOLDER --model.weights"
    follow(f"{train} two.pth --model.prefix teacher.")
    known = refused(load_model, "two.pth", prefix="nobody.")
    load_model("two.pth", prefix=re.findall(r"prefix '(\S+)'", known)[1])


def test_the_other_weights_beside_averaged_ones(network, follow):
    state = network.state_dict()
    torch.save({"model": state, "model_ema": shifted(state)}, "ema.pth")
    torch.save(state | shifted(state, "ema."), "flat.pth")
    train = "resnet-core train finetune --model.name cifar_resnet20 --data.path FOLDER --model.weights"
    for path in ("ema.pth", "flat.pth"):
        with pytest.warns(UserWarning, match="averaged") as warned:
            load_model(path)
        message = str(warned[0].message)
        options, keyword, training = re.search(r"add (--\w+ \S+), or in Python (\S+); (.*)", message).groups()
        with warnings.catch_warnings(action="error"):
            follow(f"resnet-core predict {path} IMAGE {options}")
            eval(f"load_model({path!r}, {keyword})")
            if path == "ema.pth":
                assert training == "for `train`, write them as --model.key"
                follow(f"{train} {path} {options.replace('--', '--model.')}")
            else:  # a recipe cannot say that the prefix is empty
                (command,) = re.findall(r"`(.*)` with these options", training)
                follow(f"{command} {options} && {train} NAME.safetensors")


@pytest.mark.parametrize(
    ("options", "content"),
    [
        ({}, lambda s: s),
        ({"key": "teacher"}, lambda s: {"student": shifted(s), "teacher": prefixed(s, "backbone.")}),
        ({"key": "model"}, lambda s: {"model": s, "model_ema": shifted(s)}),
    ],
)
def test_no_classifier(network, follow, options, content):
    torch.save(content(body(network.state_dict())), "body.pth")
    message = refused(load_model, "body.pth", **options)
    assert all(f"--model.{name} {value}" in message for name, value in options.items())
    follow(message)
    load_weights(resnet_core.cifar_resnet20(3), "body.pth", new_head=True, **options)
    assert "new_head=True" in message


def test_unexpected_tensors(network, follow):
    extra = {"scale": torch.ones(1), "loss.a": torch.ones(1), "loss.b": torch.ones(1)}
    torch.save(network.state_dict() | extra, "x.pth")
    message = refused(load_model, "x.pth")
    keyword, options = re.search(r"with (ignore=\[.*?\]) \((.*?);", message).groups()
    eval(f"load_model('x.pth', {keyword})")
    follow(f"resnet-core predict x.pth IMAGE {options}")
    follow(message)
    follow("resnet-core train finetune --model.name cifar_resnet20 --model.weights NAME.safetensors --data.path FOLDER")


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("save", [torch.save, lambda module, path: torch.jit.script(module).save(path)])
def test_a_module_that_computes_something_else_is_refused_and_its_own_code_loads_it(save, cli):
    network = resnet_core.resnet18(small_images=True).eval()
    save(network, "ours.pth")
    assert same_bits(load_model("ours.pth")[0](IMAGES), network(IMAGES))

    network.layer1[1].relu, network.maxpool = nn.SiLU(), nn.LPPool2d(2, 1, stride=1)
    save(network, "other.pth")
    (message,) = {refused(call, "other.pth") for call in (inspect_weights, load_model)}
    assert "computes SiLU, LPPool2d" in message or "computes LPPool2d, SiLU" in message
    line = re.search(r"if you trust the file, (torch\..*?\)) loads it", message)[1]
    assert same_bits(eval(line)(IMAGES), network(IMAGES))
    assert cli("predict", "other.pth", "IMAGE").returncode == 2


def test_a_layer_beside_a_state_dict_is_no_part_of_its_network(network):
    torch.save({"state_dict": network.state_dict(), "activation": nn.SiLU()}, "x.pth")
    assert same_bits(load_model("x.pth")[0](IMAGES), network(IMAGES))


def test_names_that_a_terminal_would_obey_are_printed_as_text(network, cli):
    """What is printed for them works in a shell that has `$'...'`, as bash."""
    torch.save({"a\x1b[31m'": network.state_dict(), "b": shifted(network.state_dict())}, "f.pth")
    done = cli("inspect", "f.pth")
    assert "\x1b" not in done.stdout
    assert r"--key $'a\x1b[31m\''" in done.stdout
    failed = cli("predict", "f.pth", "IMAGE")
    assert failed.returncode == 2
    assert "\x1b" not in failed.stderr
    said = subprocess.run(["bash", "-c", r"printf %s $'a\x1b[31m\''"], capture_output=True, text=True, check=True)
    assert said.stdout == "a\x1b[31m'"


def spectral():
    network = resnet_core.cifar_resnet20()
    for layer in (each for each in network.modules() if isinstance(each, nn.Conv2d)):
        nn.utils.spectral_norm(layer)
    return network


def with_layers(**layers):
    """A ResNet with other layers."""
    network = resnet_core.resnet18(num_classes=2)
    for name, layer in layers.items():
        network.set_submodule(name.replace("__", "."), layer)
    return network


FOREIGN = {
    "transformer": (lambda: torchvision.models.VisionTransformer(32, 16, 1, 1, 16, 16), "It is a transformer"),
    "5x5 stem": (lambda: with_layers(conv1=nn.Conv2d(3, 64, 5, 2, 2, bias=False)), r"\[64, 3, 5, 5\] instead of"),
    "bias": (lambda: with_layers(layer1__0__conv1=nn.Conv2d(64, 64, 3, padding=1)), "convolutions have biases"),
    "deep stem": (
        lambda: with_layers(conv1=nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(3)], nn.Conv2d(3, 64, 3))),
        "stem has several convolutions, as that of timm's resnet50d",
    ),
    "parametrised": (spectral, "weights lie in parts, as spectral_norm"),
    "a gain": (lambda: with_layers(layer1__0__gain=nn.PReLU()), "layer1.0.gain.weight is unknown"),
    "other depths": (
        lambda: torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 2, 1, 1], num_classes=2),
        "have 1, 2, 1, 1 blocks",
    ),
    "not a ResNet": (lambda: nn.Linear(2, 3), "Its tensors are module.weight, module.bias"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_network_says_what_differs_and_the_line_that_loads_it(kind, tmp_path, recwarn):
    make, difference = FOREIGN[kind]
    saved, network = make(), make()
    content = {"state_dict": {f"module.{name}": value for name, value in saved.state_dict().items()}, "epoch": 1}
    torch.save(content, "f.pth")
    message = refused(load_model, "f.pth")
    assert re.search(difference, message)
    assert message.removeprefix("f.pth holds no ResNet that this package has. ") in str(inspect_weights("f.pth"))

    names = {"resnet_core": resnet_core, "network": network}
    line = re.search(r"these lines load them: (.*)|loads it: (.*\)\))\. Of", message)
    exec(line[1] or line[2], names)
    loaded = names["network"].state_dict()
    assert all(same_bits(loaded[name], value) for name, value in saved.state_dict().items())
    if kind == "parametrised":
        for layer in (each for each in saved.modules() if isinstance(each, nn.Conv2d)):
            nn.utils.remove_spectral_norm(layer)
        torch.save(saved.state_dict(), "merged.pth")
        load_model("merged.pth")


def test_the_comparison_that_a_foreign_file_names_says_what_differs(tmp_path, cli):
    (tmp_path / "FILE.py").write_text(
        "import resnet_core\nfrom torch import nn\n\n\ndef build():\n    network = resnet_core.resnet18()\n"
        "    network.conv1 = nn.Conv2d(3, 64, 5, 2, 2, bias=False)\n    return network\n"
    )
    torch.save({"weight": torch.ones(1)}, "f.pth")
    command = re.search(r"`resnet-core (compare [^`]*)`", refused(load_model, "f.pth"))[1]
    done = cli(*command.split(), "--fast")
    assert "conv1" in done.stdout, done.stderr


def test_a_file_of_several_other_networks_is_a_choice(tmp_path):
    networks = {"a": nn.Linear(2, 3), "b": nn.Linear(2, 2)}
    torch.save({key: prefixed(network.state_dict(), "net.") for key, network in networks.items()}, "f.pth")
    assert "choose one with key='a' or key='b'" in refused(load_model, "f.pth")
    read = read_weights("f.pth", key="b", prefix="net.")
    assert same_bits(read["weight"], networks["b"].weight)
    assert "choose one with key='a'" in refused(read_weights, "f.pth", key="c")


def test_a_layer_between_body_and_head_is_not_left_out_in_silence(network):
    neck = {f"neck.{name}": torch.ones(64) for name in ("weight", "bias", "running_mean", "running_var")}
    state = network.state_dict()
    head = {f"classifier.{name}": state[f"fc.{name}"] for name in ("weight", "bias")}
    torch.save(prefixed(body(state), "base.") | neck | head, "f.pth")
    assert "not cifar_resnet20's: neck.weight" in refused(load_model, "f.pth")
    assert load_model("f.pth", ignore=["neck.*"])[0].fc.weight.equal(state["fc.weight"])


def test_a_projection_or_an_embedding_is_not_taken_for_a_head(network):
    state = body(network.state_dict())
    for name, matrix in (("embedding", (3, 64)), ("my_classes", (3, 32))):
        torch.save(state | {f"{name}.weight": torch.ones(matrix), f"{name}.bias": torch.ones(3)}, "f.pth")
        assert "has no classifier" in refused(load_model, "f.pth")
    torch.save(state | {"my_classes.weight": torch.ones(3, 64)}, "f.pth")
    assert "has no classifier" in refused(load_model, "f.pth")


def test_two_layers_that_may_be_the_classifier(network, follow):
    state = network.state_dict()
    torch.save(
        prefixed(state, "backbone.") | {"head.weight": state["fc.weight"] + 1, "head.bias": torch.ones(10)}, "f.pt"
    )
    assert "head.* may be the classifier instead: add --ignore 'backbone.fc.*'" in str(inspect_weights("f.pt"))

    message = refused(load_model, "f.pt")
    for pattern, expected in (("head.*", state["fc.weight"]), ("backbone.fc.*", state["fc.weight"] + 1)):
        assert f"ignore=[{pattern!r}]" in message
        assert load_model("f.pt", ignore=[pattern])[0].fc.weight.equal(expected)
    assert refused(convert, "f.pt", "f.safetensors") == message
    convert("f.pt", "f.safetensors", ignore=["head.*"])


def test_a_checkpoint_that_names_another_architecture_of_the_same_tensors(network):
    torch.save({"state_dict": network.state_dict(), "args": {"model": "resnetaa50"}}, "f.pth.tar")
    for call in (inspect_weights, load_model):
        message = refused(call, "f.pth.tar")
        assert "says at args.model that its network is resnetaa50, which averages before each stride" in message
        assert message.endswith("timm.create_model('resnetaa50', checkpoint_path='f.pth.tar')")
    assert load_weights(network, "f.pth.tar").loaded == 116  # a network of the caller's own


def test_a_part_of_several_files_names_the_whole(network, tmp_path):
    state = network.state_dict()
    names = list(state)
    halves = {"model-1.safetensors": names[:-2], "model-2.safetensors": names[-2:]}
    for name, inside in halves.items():
        save_file({each: state[each] for each in inside}, tmp_path / name)
    places = {each: name for name, inside in halves.items() for each in inside}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert f"give {index}, or its folder" in refused(load_model, tmp_path / "model-1.safetensors")
    assert load_model(index)[0].fc.weight.equal(state["fc.weight"])

    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "whole.safetensors")}))
    save_file(state, tmp_path / "whole.safetensors")
    assert load_model(tmp_path / "whole.safetensors")[0].fc.weight.equal(state["fc.weight"])

    with warnings.catch_warnings(action="ignore"):
        dcp.save({"model": state}, checkpoint_id=tmp_path / "dcp")
    (part,) = (tmp_path / "dcp").glob("*.distcp")
    assert f"give the folder {tmp_path / 'dcp'}" in refused(load_model, part)
    assert load_model(tmp_path / "dcp")[0].fc.weight.equal(state["fc.weight"])
    part.rename(tmp_path / "elsewhere")
    assert f"{part} is missing, which the checkpoint lists; fetch it" in refused(load_model, tmp_path / "dcp")


def test_another_number_of_classes(network):
    torch.save(network.state_dict(), "ten.pth")
    model = resnet_core.cifar_resnet20(3)
    assert "load_weights(..., new_head=True)" in refused(load_weights, model, "ten.pth")
    load_weights(model, "ten.pth", new_head=True)
    model.reset_classifier(10)
    load_weights(model, "ten.pth")
    torch.save(resnet_core.cifar_resnet20(7).state_dict(), "seven.pth")
    assert "reset_classifier(num_classes)" in refused(resnet_core.cifar_resnet20, 3, weights="seven.pth")
    resnet_core.cifar_resnet20(weights="seven.pth").reset_classifier(3)


def test_another_model_names_the_right_one(network, cli):
    torch.save(network.state_dict(), "x.pth")
    known = re.search(r"weights of (\S+), not", refused(load_model, "x.pth", model="resnet18"))[1]
    load_model("x.pth", model=known)
    message = refused(load_weights, nn.Linear(2, 2), "x.pth")
    command = re.search(r"`resnet-core (inspect FILE)`", message)[1]
    assert cli(*command.replace("FILE", "x.pth").split()).returncode == 0


def test_no_preparation_of_images(network, cli, follow):
    info = WeightsInfo(model="cifar_resnet20")
    write_weights("x.safetensors", network.state_dict(), info)
    done = cli("predict", "x.safetensors", "IMAGE")
    assert done.returncode == 2
    follow(done.stderr)
    follow("resnet-core predict NAME.safetensors IMAGE")
    torch.save(resnet_core.cifar_resnet20(in_channels=4).state_dict(), "four.pth")
    assert "the network that `resnet_core.weights.load_model` returns" in cli("predict", "four.pth", "IMAGE").stderr
    load_model("four.pth")[0](torch.zeros(1, 4, 32, 32))


def test_a_folder_s_preparation_that_cannot_be_followed(follow, tmp_path):
    folder = tmp_path / "timm folder"
    folder.mkdir()
    write_weights(folder / "model.safetensors", resnet_core.resnet18(num_classes=2).state_dict())
    described = {"architecture": "resnet18", "num_classes": 2, "pretrained_cfg": {"crop_mode": "squash"}}
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.warns(UserWarning, match="no preparation") as warned:
        resnet_core.resnet18(weights="timm folder")
    with warnings.catch_warnings(action="ignore"):
        follow(str(warned[0].message))
    follow("resnet-core predict NAME.safetensors IMAGE")


def test_what_convert_refuses(network, follow, tmp_path, cli):
    torch.save(network.state_dict(), "x.pth")
    for words, remedy in [
        (["x.pth", "x.bin"], "x.safetensors"),
        (["x.pth", "absent/x.safetensors"], "x2.safetensors"),
        (["x.pth", "x.safetensors"], "x3.safetensors"),
    ]:
        assert cli("convert", *words).returncode == 2
        follow(f"resnet-core convert x.pth {remedy}")
    named = {their_names("transformers", [name])[name]: value for name, value in network.state_dict().items()}
    torch.save(named, "theirs.pth")
    assert "leave --source out" in cli("convert", "theirs.pth", "x4.safetensors", "--source", "torchvision").stderr
    follow("resnet-core convert theirs.pth x4.safetensors")


# What is no weights file: unpacked, written anew or made from what it stands for.

CODE = re.compile(r"(?:with |: )((?:torch\.save|write_weights)\(.*\))$")


def archive_npz(state):
    numpy.savez("x.npz", **{name: value.numpy() for name, value in state.items()})
    return "x.npz"


def exported(state):
    with warnings.catch_warnings(action="ignore"):
        program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
        torch.export.save(program, "x.pt2")
    return "x.pt2"


@pytest.mark.parametrize("make", [archive_npz, exported])
def test_the_line_that_writes_a_file_of_another_kind_anew(make, network):
    path = make(network.state_dict())
    code = CODE.search(refused(load_model, path))[1]
    with warnings.catch_warnings(action="ignore"):
        exec(code, {"torch": torch, "numpy": numpy, "write_weights": write_weights})
    if make is archive_npz:
        load_model("NAME.safetensors")
    else:
        assert load_weights(nn.Linear(2, 2), "NAME.pth").loaded == 2


def test_archives_are_unpacked(network, tmp_path):
    torch.save(network.state_dict(), "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth.gz").write_bytes(gzip.compress(data, 1))
    with zipfile.ZipFile("x.zip", "w") as archive:
        archive.write("x.pth", "inside.pth")
    with tarfile.open("x.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add("x.pth", "inside.pth")
    for name in ("x.pth.gz", "x.zip", "x.tar.gz"):
        assert "unpack it" in refused(load_model, name)
    (tmp_path / "y.pth").write_bytes(gzip.decompress((tmp_path / "x.pth.gz").read_bytes()))
    load_model("y.pth")
    zipfile.ZipFile("x.zip").extract("inside.pth")
    load_model("inside.pth")


def test_a_frozen_archive_is_given_from_before(tmp_path):
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(nn.Linear(2, 2).eval())
        scripted.save("before.pt")
        torch.jit.freeze(scripted).save("frozen.pt")
    assert "before it was frozen" in refused(load_weights, nn.Linear(2, 2), "frozen.pt")
    assert load_weights(nn.Linear(2, 2), "before.pt").loaded == 2


def test_a_keras_file_is_refused_with_the_command_that_converts_it(cli, tmp_path):
    (tmp_path / "x.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    for call in (load_model, inspect_weights):
        message = refused(call, "x.weights.h5")
        command = re.search(r"`resnet-core (.*?)`", message)[1]
        assert command == "convert x.weights.h5 NAME.safetensors --source keras"
    assert "unrecognized" not in cli(*shlex.split(command)).stderr.lower()  # needs the library; `make interop` has it


def test_a_folder_of_several_weights_files_names_the_command(network, tmp_path, follow):
    (tmp_path / "folder" / "a run").mkdir(parents=True)
    for name, state in (("folder/last.pth", {}), ("folder/a run/best.ckpt", network.state_dict())):
        torch.save(state, name)
    torch.save({}, "folder/optimizer.pt")
    (tmp_path / "folder" / "loop.pth").symlink_to("loop.pth")
    (message,) = {refused(call, "folder") for call in (inspect_weights, load_model)}
    assert "folder has 2 weights files (a run/best.ckpt, last.pth); give one of them" in message
    follow(message)
    (tmp_path / "folder" / "last.pth").unlink()
    with pytest.warns(UserWarning, match="the weights file a run/best.ckpt is taken"):
        load_model("folder")


def test_parts_of_deepspeed_are_joined_by_its_own_script(network, tmp_path):
    part = tmp_path / "step" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    part.parent.mkdir()
    torch.save({"module": {name: value[..., :0] for name, value in network.state_dict().items() if value.dim()}}, part)
    (tmp_path / "step" / "zero_pp_rank_1_mp_rank_00_model_states.pt").write_bytes(part.read_bytes())
    for given in (tmp_path, part):
        assert f"`python {tmp_path}/zero_to_fp32.py {tmp_path} {tmp_path}/whole`" in refused(load_model, given)


def test_a_file_of_a_published_set_s_name_does_not_take_its_place(network):
    torch.save(network.state_dict(), "cifar_resnet20")
    assert not names_a_file("cifar_resnet20")
    assert not names_a_file("cifar_resnet20:DEFAULT")
    assert names_a_file("./cifar_resnet20")


def test_a_distributed_checkpoint_becomes_one_file_by_the_tool_that_is_named(network):
    with warnings.catch_warnings(action="ignore"):
        dcp.save(network.state_dict(), checkpoint_id="dcp", no_dist=True)
        found = load_model("dcp")[0].state_dict()
        dcp_to_torch_save("dcp", "NAME.pth")
    for state in (found, load_model("NAME.pth")[0].state_dict()):
        assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_a_file_of_other_things(network):
    torch.save([1, 2], "x.pth")
    assert "save model.state_dict(), with torch.save or, better, write_weights" in refused(load_model, "x.pth")
