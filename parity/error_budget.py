"""The error budget: how far each arithmetic is from float64, ours and torchvision's, where bits are equal or not."""

from __future__ import annotations

import copy

import torch
import torchvision
from torch import nn

import resnet_core
from parity.drop_in import images
from resnet_core.comparison.rungs import LOGITS, RUNGS
from resnet_core.comparison.trace import calibrate
from resnet_core.foundation.precision import float_errors

ARITHMETICS = ("logits", "channels_last", "bfloat16", "float16", "torch.compile")
MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def trained_statistics(network: nn.Module) -> nn.Module:
    """The network with BatchNorm statistics and weights as training leaves them, and not those of a new one."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


def errors(name: str, arithmetic: str, size: int = 64) -> tuple[float, float]:
    """Largest errors of ours and of torchvision's logits in that arithmetic, relative to the largest logit."""
    torch.manual_seed(0)
    ours = resnet_core.get_model(name)
    calibrate(ours, images(seed=1, batch=4))
    theirs = torchvision.models.get_model(name)
    theirs.load_state_dict(ours.state_dict())
    inputs = images(size=size)
    run, labels = RUNGS[arithmetic][0], torch.arange(len(inputs))
    exact = RUNGS["logits"][0](copy.deepcopy(theirs).double(), inputs.double(), labels)[LOGITS]
    found = float_errors(*(run(model, inputs, labels)[LOGITS] for model in (ours, theirs)), exact)
    largest = exact.abs().max().item()
    return found[0] / largest, found[1] / largest
