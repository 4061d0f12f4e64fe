"""Entry points of `torch.hub.load(repo, "resnet50")`."""

from resnet_core.builders import *  # noqa: F403

dependencies = ["torch"]
