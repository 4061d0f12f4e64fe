"""What a training imports or looks up once: the processes that the server of tests/forks.py forks have it already."""

# ruff: noqa: F401
import PIL.Image
import torch._dynamo
import torch.utils.data
import torchvision.transforms.v2
import typeguard

import resnet_core.cli.main
import resnet_core.cli.parse_train
import resnet_core.runs

PIL.Image.init()
