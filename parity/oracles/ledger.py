"""What is known to differ between implementations of ResNet, why, and how to ask ours for it; each entry is measured.

`python -m parity.oracles.ledger` prints every entry with two numbers: how far ours is from the other implementation
where the deviation is ignored, and where it is allowed for by what stands in the entry.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import resnet_core
from parity.oracles import composer, flax, keras, timm, torchvision, transformers
from parity.oracles.oracle import load_by_names, noise
from parity.patients.plants import PLANTS
from resnet_core.classifier.builders import CIFAR_MODELS
from resnet_core.classifier.initializers import Initializer
from resnet_core.comparison.trace import calibrate
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet
from resnet_core.weights.libraries import KERAS_EPSILON, LIBRARIES
from resnet_core.weights.names import EPSILON, their_names


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How far ours is from the other implementation, without and with the deviation."""

    ignored: float
    allowed: float
    bound: float
    """What is rounding, and not a difference: 0 where bits must be equal."""
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the deviation is there, and is all that there is."""
        return self.allowed <= self.bound < self.ignored


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One thing that another implementation does in another way."""

    implementation: str
    what: str
    source: str
    """Where it can be read: a section of a paper, or a file of that implementation."""
    there: str
    ours: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """What our builder is called with to get theirs."""
    mistakes: tuple[str, ...] = ()
    """The changes of `parity.patients.plants.PLANTS` that make ours theirs."""
    otherwise: str = ""
    """In words, where neither does it."""
    check: Callable[[Deviation], Measured]
    """Measures it with this entry's `config` and `mistakes`."""
    needs: tuple[str, ...] = ()
    """Packages that the check imports in addition to the project's own."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.mistakes if name not in PLANTS]
        if unknown:
            raise ValueError(f"mistakes are keys of PLANTS, got {unknown[0]!r}; {did_you_mean(unknown[0], PLANTS)}")

    @property
    def missing(self) -> list[str]:
        """The packages that are needed and not installed."""
        return [name for name in self.needs if find_spec(name) is None]

    def measure(self) -> Measured:
        """Both numbers, the same in every run. Raises ImportError where a package is missing."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.check(self)

    def applied(self, model: Any) -> Any:
        """The network with the entry's mistakes; it may use the model up."""
        for name in self.mistakes:
            model = PLANTS[name](model)
        return model

    @property
    def asked(self) -> str:
        """How ours is asked for it, in words."""
        config = [f"{name}={in_words(value)}" for name, value in self.config.items()]
        return ", ".join([*config, *(f"mistake {name!r}" for name in self.mistakes)]) or self.otherwise


def in_words(value: object) -> str:
    if isinstance(value, partial):
        return f"{value.func.__name__} with {', '.join(f'{name} {each:g}' for name, each in value.keywords.items())}"
    return repr(value)


def seeded(build: Callable[..., nn.Module], *arguments: Any, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(*arguments, **config)


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, images: Tensor) -> float:
    """Largest difference of the logits in evaluation mode."""
    return (ours.eval()(images).double() - theirs.eval()(images).double()).abs().max().item()


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Over all tensors of both, which must have the same names."""
    assert ours.keys() == theirs.keys()
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in theirs)


# Papers and libraries of torch.

PAPER_GFLOPS = {"resnet50": 3.8, "resnet101": 7.6, "resnet152": 11.3}  # He et al., Table 1: "multiply-adds"


@cache
def multiply_adds(name: str, *, stride_in_1x1: bool = False) -> float:
    """Of one image of 224 pixels, in 1e9."""
    with torch.device("meta"):
        model = resnet_core.get_model(name, stride_in_1x1=stride_in_1x1)
    return resnet_core.describe(model, 224).multiply_adds / 1e9


def paper_table(entry: Deviation) -> Measured:
    def distances(config: Mapping[str, Any]) -> list[float]:
        return [abs(multiply_adds(name, **config) - published) for name, published in PAPER_GFLOPS.items()]

    # The paper gives one decimal, of which some are rounded (7.57 as 7.6) and some cut (3.86 as 3.8).
    unit = "G multiply-adds"
    return Measured(ignored=min(distances({})), allowed=max(distances(entry.config)), bound=0.1, unit=unit)


def torchvision_bits(entry: Deviation) -> Measured:
    theirs, ours, paper = (
        seeded(torchvision.build, "resnet50"),
        seeded(resnet_core.resnet50, **entry.config),
        seeded(resnet_core.resnet50, stride_in_1x1=True),
    )
    for model in (theirs, ours, paper):
        torch.manual_seed(1)
        calibrate(model, noise(4))
    images = noise(2)
    ignored, allowed = difference(paper, theirs, images), difference(ours, theirs, images)
    return Measured(ignored=ignored, allowed=allowed, bound=0, unit="logits")


def timm_start(entry: Deviation) -> Measured:
    theirs = seeded(timm.build, "resnet50").state_dict()
    ours, zeroed = (seeded(resnet_core.resnet50, **config).state_dict() for config in ({}, entry.config))
    ignored, allowed = largest_difference(ours, theirs), largest_difference(zeroed, theirs)
    return Measured(ignored=ignored, allowed=allowed, bound=0, unit="initial weights")


def transformers_start(entry: Deviation) -> Measured:
    """Their initialisation from a seed, and ours drawn anew from it in their order."""
    with torch.device("meta"):
        theirs: Any = transformers.build("resnet18")
    theirs.to_empty(device="cpu")
    seeded(theirs.init_weights)

    ours = seeded(resnet_core.resnet18)
    names = their_names("transformers", ours.state_dict())
    expected = {name: theirs.state_dict()[new] for name, new in names.items()}
    ignored = largest_difference(ours.state_dict(), expected)

    modules = {new.rpartition(".")[0]: ours.get_submodule(name.rpartition(".")[0]) for name, new in names.items()}
    torch.manual_seed(0)
    for path, _ in theirs.named_modules():
        module: Any = modules.get(path)
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight)  # their base class draws first, and what it draws is overwritten
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
    allowed = largest_difference(ours.state_dict(), expected)
    return Measured(ignored=ignored, allowed=allowed, bound=0, unit="initial weights")


def transformers_v1(entry: Deviation) -> Measured:
    theirs = transformers.build("resnet50", downsample_in_bottleneck=True)
    ours = resnet_core.resnet50(**entry.config)
    calibrate(ours, noise(4))
    load_by_names(theirs, ours, "transformers")
    v15 = resnet_core.resnet50()
    v15.load_state_dict(ours.state_dict())
    images = noise(2)
    ignored, allowed = difference(v15, theirs, images), difference(ours, theirs, images)
    return Measured(ignored=ignored, allowed=allowed, bound=0, unit="logits")


# Keras. Its BatchNorm computes in float32, whatever type it is given. Its results are held to the bound with which
# weights are converted, in units of the largest value, or of 1 if that is larger.


def keras_bound(largest: float) -> float:
    return LIBRARIES["keras"].bound * max(1.0, largest)


def keras_resnet50(**options: Any) -> Any:
    keras.library().utils.set_random_seed(0)
    return keras.build("resnet50", **options)


def keras_logits(ignored: nn.Module, allowed: nn.Module, theirs: Any) -> Measured:
    network, images = keras.ChannelsFirst(theirs).eval(), noise(2)
    with torch.no_grad():
        largest = network(images).abs().max().item()
    return Measured(
        ignored=difference(ignored, network, images),
        allowed=difference(allowed, network, images),
        bound=keras_bound(largest),
        unit="logits",
    )


def keras_v1(entry: Deviation) -> Measured:
    theirs = keras.trained(keras_resnet50())
    values = keras.variables(theirs)
    return keras_logits(
        keras.converted("resnet50", values), keras.converted("resnet50", values, **entry.config), theirs
    )


def keras_biases(entry: Deviation) -> Measured:
    """Their convolutions' biases forgotten, and put into ours where the mistake makes room for them."""
    theirs = keras.trained(keras_resnet50())
    values = keras.variables(theirs)
    forgotten = {name: value * 0 if name.endswith("_conv/bias") else value for name, value in values.items()}
    ignored = keras.converted("resnet50", forgotten, **keras.V1)
    biased = entry.applied(keras.converted("resnet50", forgotten, **keras.V1))
    names = their_names("keras", (name for name in biased.state_dict() if name.endswith(".bias")))
    for name, new in names.items():
        layer = new.removesuffix(".bias")
        if layer.endswith("_conv"):
            biased.get_parameter(name).data.copy_(values[f"{layer}/bias"])
    return keras_logits(ignored, biased, theirs)


def keras_epsilon(entry: Deviation) -> Measured:
    """Where a variance is small; elsewhere the difference is no larger than rounding."""
    theirs = keras.trained(keras_resnet50())
    variance = theirs.get_layer("conv1_bn").moving_variance
    variance.assign(torch.full(variance.shape, 1e-6))
    values = {
        name: value - (KERAS_EPSILON - EPSILON) if name.endswith("moving_variance") else value
        for name, value in keras.variables(theirs).items()
    }  # which a conversion adds
    ignored = keras.converted("resnet50", values, **keras.V1)
    allowed = keras.converted("resnet50", values, **keras.V1, **entry.config)
    return keras_logits(ignored, allowed, theirs)


@torch.no_grad()
def keras_momentum(entry: Deviation) -> Measured:
    theirs = keras_resnet50()
    models = [keras.converted("resnet50", keras.variables(theirs), **keras.V1, **each) for each in ({}, entry.config)]
    images = noise(2)
    for model in (*models, keras.ChannelsFirst(theirs)):
        model.train()(images)
    after = keras.converted("resnet50", keras.variables(theirs), **keras.V1).state_dict()
    means = [
        {name: value for name, value in state.items() if name.endswith("running_mean")}
        for state in (after, *(model.state_dict() for model in models))
    ]
    ignored, allowed = (largest_difference(each, means[0]) for each in means[1:])
    largest = max(value.abs().max().item() for value in means[0].values())
    return Measured(ignored=ignored, allowed=allowed, bound=keras_bound(largest), unit="running means")


@torch.no_grad()
def keras_variance(entry: Deviation) -> Measured:
    """One layer of each, on 8 values a channel."""
    theirs, ours = keras.library().layers.BatchNormalization(momentum=0.9), nn.BatchNorm2d(5)
    images = torch.randn(2, 5, 2, 2)
    with keras.library().device("cpu:0"):
        theirs(images.permute(0, 2, 3, 1), training=True)
    ours(images)
    expected, variance = torch.as_tensor(theirs.moving_variance.value), ours.running_var
    assert variance is not None
    biased = 0.9 + (variance - 0.9) * 7 / 8
    ignored, allowed = ((each - expected).abs().max().item() for each in (variance, biased))
    return Measured(ignored=ignored, allowed=allowed, bound=keras_bound(1.0), unit="running variance")


def keras_start(entry: Deviation) -> Measured:
    """The standard deviation of every convolution's initial weights beside ours."""
    theirs = keras.converted("resnet50", keras.variables(keras_resnet50()))
    ours, xavier = resnet_core.resnet50(), resnet_core.resnet50()
    xavier.apply(Initializer.XAVIER_UNIFORM.get_initializer())

    def furthest(other: nn.Module) -> float:
        pairs = zip(kernels(theirs), kernels(other), strict=True)
        return max(abs((a.std() / b.std()).item() - 1) for a, b in pairs)

    # Two samples of 4096 uniform values, the fewest that a convolution has: 1% is one standard error of the ratio.
    unit = "relative standard deviation"
    return Measured(ignored=furthest(ours), allowed=furthest(xavier), bound=0.05, unit=unit)


def kernels(model: nn.Module) -> list[Tensor]:
    return [value for value in model.state_dict().values() if value.dim() == 4]


def keras_softmax(entry: Deviation) -> Measured:
    theirs = keras.trained(keras_resnet50(activation="softmax"))
    values = keras.variables(theirs)
    ignored, changed = (keras.converted("resnet50", values, **keras.V1) for _ in range(2))
    return keras_logits(ignored, entry.applied(changed), theirs)


# Flax and Composer.


@torch.no_grad()
def flax_padding(entry: Deviation) -> Measured:
    """Both blocks at an even size; at an odd one, 65, 33, 17, 9 and 5 pixels, nothing differs to begin with."""
    ignored, allowed, largest = [], [], 0.0
    for block in (BasicBlock, Bottleneck):
        ours = ResNet(block, (1, 1, 1, 1), num_classes=10)
        calibrate(ours, noise(4))
        for size in (65, 64):
            theirs = flax.twin(ours, bottleneck=block is Bottleneck, classes=10, image_size=size)
            images = noise(2, size)
            (allowed if size % 2 else ignored).append(difference(ours, theirs, images))
            largest = max(largest, theirs(images).abs().max().item())
        allowed.append(difference(entry.applied(ours), theirs, images))
    return Measured(ignored=min(ignored), allowed=max(allowed), bound=keras_bound(largest), unit="logits")


def composer_shortcut(entry: Deviation) -> Measured:
    def distances(config: Mapping[str, Any]) -> list[int]:
        return [
            abs(count(resnet_core.get_model(CIFAR_MODELS[name], **config)) - count(composer.network(name)))
            for name in composer.BLOCKS
        ]

    ignored, allowed = min(distances({})), max(distances(entry.config))
    return Measured(ignored=ignored, allowed=allowed, bound=0, unit="parameters")


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def composer_start(entry: Deviation) -> Measured:
    """As both start, and after the same initializers from the same seed."""
    models = [seeded(composer.network, "resnet_20"), seeded(resnet_core.cifar_resnet20, shortcut="B")]

    def distance() -> float:
        theirs, ours = (model.state_dict().values() for model in models)
        return max((a.double() - b.double()).abs().max().item() for a, b in zip(ours, theirs, strict=True))

    ignored = distance()
    for model in models:
        torch.manual_seed(0)
        for initializer in (Initializer.KAIMING_NORMAL, Initializer.LINEAR_LOG_CONSTANT_BIAS):
            model.apply(initializer.get_initializer())
    return Measured(ignored=ignored, allowed=distance(), bound=0, unit="initial weights")


V15 = "on the 3x3 (v1.5)"
APPLICATIONS = "keras/src/applications/resnet.py"

LEDGER: dict[str, Deviation] = {
    "paper: v1": Deviation(
        implementation="He et al. 2015",
        what="where a Bottleneck has its stride; Table 1's FLOPs are those of v1",
        source="arXiv:1512.03385, Table 1: 3.8, 7.6 and 11.3 x 10^9 FLOPs (multiply-adds)",
        there="on the first 1x1",
        ours=V15,
        config={"stride_in_1x1": True},
        check=paper_table,
    ),
    "torchvision: v1.5": Deviation(
        implementation="torchvision",
        what="nothing; the same bits from the same seed. Ignored here: that it is not the paper's v1",
        source="torchvision/models/resnet.py, the comment in Bottleneck",
        there=V15,
        ours=V15,
        otherwise="as it is",
        check=torchvision_bits,
    ),
    "timm: zero-init": Deviation(
        implementation="timm",
        what="the scale of each block's last BatchNorm at the start; all other draws are ours",
        source="timm/models/resnet.py, ResNet.init_weights(zero_init_last=True)",
        there="0",
        ours="1",
        config={"zero_init_residual": True},
        check=timm_start,
        needs=("timm",),
    ),
    "transformers: initialisation": Deviation(
        implementation="transformers",
        what="the order of the draws: the laws are ours (He's normal fan-out, torch's head), the numbers are not",
        source="transformers/models/resnet/modeling_resnet.py, _init_weights",
        there="a normal draw that is overwritten before each, and the shortcut before its block",
        ours="the block, then its shortcut",
        otherwise="convert their weights",
        check=transformers_start,
        needs=("transformers",),
    ),
    "transformers: v1 on request": Deviation(
        implementation="transformers",
        what="where a Bottleneck has its stride if the configuration says downsample_in_bottleneck",
        source="transformers/models/resnet/modeling_resnet.py, ResNetBottleNeckLayer",
        there="on the first 1x1",
        ours=V15,
        config={"stride_in_1x1": True},
        check=transformers_v1,
        needs=("transformers",),
    ),
    "Keras: v1": Deviation(
        implementation="keras.applications",
        what="where a Bottleneck has its stride",
        source=f"{APPLICATIONS}, residual_block_v1",
        there="on the first 1x1",
        ours=V15,
        config=keras.V1,
        check=keras_v1,
        needs=("keras",),
    ),
    "Keras: biased convolutions": Deviation(
        implementation="keras.applications",
        what="biases of the convolutions, although a BatchNorm follows each",
        source=f"{APPLICATIONS}, residual_block_v1 (Conv2D's default)",
        there="yes",
        ours="none; a conversion subtracts theirs from the running mean",
        mistakes=("biased convolutions",),
        check=keras_biases,
        needs=("keras",),
    ),
    "Keras: eps": Deviation(
        implementation="keras.applications",
        what="what BatchNorm adds to the variance",
        source=f"{APPLICATIONS}, residual_block_v1",
        there="1.001e-5",
        ours="1e-5; a conversion adds the difference to the running variance",
        config={"norm_layer": partial(nn.BatchNorm2d, eps=KERAS_EPSILON)},
        check=keras_epsilon,
        needs=("keras",),
    ),
    "Keras: momentum": Deviation(
        implementation="keras.applications",
        what="how fast the running statistics follow; Keras' momentum is 1 - torch's",
        source="keras/src/layers/normalization/batch_normalization.py: momentum=0.99",
        there="0.01 in torch's terms",
        ours="0.1",
        config={"norm_layer": partial(nn.BatchNorm2d, momentum=0.01)},
        check=keras_momentum,
        needs=("keras",),
    ),
    "Keras: biased variance": Deviation(
        implementation="Keras, and Flax",
        what="which variance goes into the running variance, of n values",
        source="keras/src/layers/normalization/batch_normalization.py, call",
        there="divided by n",
        ours="divided by n - 1, as torch does",
        otherwise="none; a network in evaluation mode does not show it",
        check=keras_variance,
        needs=("keras",),
    ),
    "Keras: initialisation": Deviation(
        implementation="keras.applications",
        what="the law of the convolutions' first weights",
        source="keras/src/layers/convolutional/base_conv.py: kernel_initializer='glorot_uniform'",
        there="uniform, variance 2 / (fan-in + fan-out)",
        ours="normal, variance 2 / fan-out",
        otherwise="initializers=['xavier_uniform'] of composer_resnet",
        check=keras_start,
        needs=("keras",),
    ),
    "Keras: softmax": Deviation(
        implementation="keras.applications",
        what="what comes out, unless classifier_activation=None",
        source=f"{APPLICATIONS}, classifier_activation='softmax'",
        there="probabilities",
        ours="logits",
        mistakes=("softmax in the output",),
        check=keras_softmax,
        needs=("keras",),
    ),
    "Flax: SAME padding": Deviation(
        implementation="Flax's ImageNet example",
        what="padding where the stride is 2, of the max-pool and the 3x3 in the blocks (not the stem), at even sizes",
        source="flax/examples/imagenet/models.py, ResNet; measured with Keras' layers, which pad alike",
        there="0 before, 1 after",
        ours="1 before, 1 after",
        mistakes=("SAME padding in the max-pool", "SAME padding in the strided 3x3"),
        check=flax_padding,
        needs=("keras",),
    ),
    "Composer CIFAR: shortcut B": Deviation(
        implementation="Composer's CIFAR ResNet",
        what="the shortcut where the width doubles",
        source="composer/models/resnet_cifar/resnets.py, ResNetCIFAR.Block (0.18); He et al. 2015, section 4.2",
        there="B, a projection",
        ours="A, zeros, as in the paper",
        config={"shortcut": "B"},
        check=composer_shortcut,
    ),
    "Composer CIFAR: initialisation": Deviation(
        implementation="Composer's CIFAR ResNet",
        what="the start of the convolutions where no initializers are given",
        source="composer/models/resnet_cifar/resnets.py, ResNetCIFAR.__init__ (0.18)",
        there="torch's own, uniform",
        ours="He's normal, fan-out",
        otherwise="the same initializers for both",
        check=composer_start,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Prints the ledger. Returns 1 if an entry does not hold."""
    argparse.ArgumentParser(prog="python -m parity.oracles.ledger", description=__doc__).parse_args(arguments)
    warnings.simplefilter("ignore")  # the libraries' own
    broken = 0
    print(f"{'deviation':<32}{'ignored':>10}{'allowed':>10}{'bound':>10}  unit")
    for key, entry in LEDGER.items():
        if entry.missing:
            print(f"{key:<32}skipped: {', '.join(entry.missing)} is not installed")
            continue
        found = entry.measure()
        broken += not found.holds
        numbers = "".join(f"{value:>10.2g}" for value in (found.ignored, found.allowed, found.bound))
        print(f"{key:<32}{numbers}  {found.unit}{'' if found.holds else '  DOES NOT HOLD'}", flush=True)
        print(f"    {entry.what}\n    there: {entry.there}; ours: {entry.ours}; to get theirs: {entry.asked}")
        print(f"    {entry.source}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
