"""The trainer with our ResNet against the loop of docs/by_hand.py with torchvision's: the same losses and weights."""

import math

import pytest
import torch
import torchvision
from torch.nn import functional as F

import resnet_core
from docs.by_hand import train
from resnet_core.data import EvalLoader, Split, TrainLoader
from resnet_core.foundation.precision import same_bits
from resnet_core.models.resnet import BasicBlock, ResNet
from resnet_core.train import TrainConfig, Trainer, World
from resnet_core.train.metrics import classification_sums
from resnet_core.train.optimizers import OptimizerConfig, build_optimizer
from resnet_core.train.schedules import Schedule, ScheduleConfig

STEPS, EPOCHS, BATCH, CLASSES = 5, 4, 8, 10
LAYERS = [1, 1, 1, 1]
PEAK, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 1e-4


def seeded(network, block, norm_layer=None):
    torch.manual_seed(0)
    return network(block, LAYERS, num_classes=CLASSES, norm_layer=norm_layer)


def trainer(model, *, accumulation=1, size=40):
    generator = torch.Generator().manual_seed(1)
    samples = STEPS * BATCH + 3  # three fill no batch
    images = torch.randn(samples, 3, size, size, generator=generator).to(model.conv1.weight.dtype)
    split = Split(images, torch.arange(samples) % CLASSES)
    return Trainer(
        TrainConfig(epochs=EPOCHS, accumulation=accumulation),
        model,
        build_optimizer(model, OptimizerConfig(lr=PEAK, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)),
        world=World(),
        loss_fn=F.cross_entropy,
        lr_fn=Schedule(config=ScheduleConfig(warmup_epochs=1.0), peak=PEAK, steps_per_epoch=STEPS, epochs=EPOCHS),
        train_loader=TrainLoader(split, augment=lambda image, _: image, global_batch=BATCH, seed=7),
        eval_loader=EvalLoader(split, batch=BATCH),
        score_fn=classification_sums,
    )


def by_hand(model, batches):
    """The losses of the loop in docs/by_hand.py; linear warm-up for STEPS steps, then half a cosine down to 0."""

    def learning_rate(step):
        down = (step - STEPS) / (len(batches) - STEPS)
        return PEAK * (step + 1) / STEPS if step < STEPS else PEAK * (1 + math.cos(math.pi * down)) / 2

    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    return list(train(model, optimizer, batches, learning_rate))


def batches_of(one):
    return [batch for epoch in range(EPOCHS) for batch in one.train_loader.epoch(epoch)]


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
def test_twenty_steps_are_those_of_a_loop_by_hand_with_torchvisions_resnet_bitwise(block):
    theirs = torchvision.models.resnet
    one = trainer(seeded(ResNet, getattr(resnet_core, block)))
    losses = [step.loss for step in one.steps()]
    reference = seeded(theirs.ResNet, getattr(theirs, block))
    expected = by_hand(reference, batches_of(one))
    assert len(losses) == 20
    assert losses == expected
    for (name, value), expected_value in zip(
        one.model.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        assert same_bits(value, expected_value), name
    print(f"{block}: 20 losses {losses[0]:.6f} .. {losses[-1]:.6f} and all weights equal to the bit")


def frozen(network, block):
    """The network in float64 with BatchNorm statistics that stay: each sample is then computed by itself."""
    model = seeded(network, block)
    with torch.no_grad():
        model.train()(torch.randn(16, 3, SMALL, SMALL, generator=torch.Generator().manual_seed(2)))
    still = seeded(network, block, torchvision.ops.FrozenBatchNorm2d)
    still.load_state_dict(model.state_dict(), strict=False)
    return still.double()


SMALL = 16  # pixels: torch's convolutions in float64 are slow


def test_accumulation_is_the_whole_batch_in_float64():
    """In float32 training multiplies each rounding, by how much depends on the machine: 2e-7 here, 4e-6 there."""
    one = trainer(frozen(ResNet, BasicBlock), accumulation=2, size=SMALL)
    losses = [step.loss for step in one.steps()]
    theirs = torchvision.models.resnet
    expected = by_hand(frozen(theirs.ResNet, theirs.BasicBlock), batches_of(one))
    furthest = max(abs(loss - other) for loss, other in zip(losses, expected, strict=True))
    print(f"accumulation 2: losses {losses[0]:.6f} .. {losses[-1]:.6f}, at most {furthest:.1e} apart")
    assert furthest <= 1e-6
