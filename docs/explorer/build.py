"""Writes the explorer, one HTML page that needs no network: `python docs/explorer/build.py OUT.html`.

The page's numbers come from resnet_core: the models from its registry, the source lines from its files, the live
network from `network.safetensors`. `page.html` says where each part goes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from pathlib import Path
from typing import Any

from resnet_core.models import backbone, cifar, resnet
from resnet_core.models.registry import MODELS

HERE = Path(__file__).parent

# What the page shows the source of.
DEFINITIONS = {
    resnet: ("conv3x3", "conv1x1", "make_shortcut", "BasicBlock", "Bottleneck", "ResNet", "make_stage"),
    cifar: ("PadShortcut", "CifarResNet", "make_halving_stage"),
    backbone: ("Backbone",),
}


def models() -> dict[str, Any]:
    """The models by name, as few settings each as architecture.js needs."""
    rows: dict[str, Any] = {}
    for name, model in MODELS.items():
        if model.network is cifar.CifarResNet:
            (n,) = model.arguments
            row = {"family": "cifar", "network": "CifarResNet", "block": "BasicBlock", "layers": [n] * 3}
            rows[name] = row | {"stemChannels": 16, "fixed": {}}
        else:
            block, layers = model.arguments
            row = {"family": "imagenet", "network": "ResNet", "block": block.__name__, "layers": layers}
            fixed = {{"width_per_group": "width"}.get(key, key): value for key, value in model.config.items()}
            rows[name] = row | {"stemChannels": 64, "fixed": fixed}
    return rows


def sources() -> dict[str, Any]:
    """Each definition's file, first line and text."""
    found = {}
    for module, names in DEFINITIONS.items():
        for name in names:
            definition = getattr(module, name)
            lines, first = inspect.getsourcelines(definition.__init__ if name == "Backbone" else definition)
            found[name] = {"file": Path(inspect.getfile(module)).name, "line": first, "text": "".join(lines).rstrip()}
    return found


def as_script(data: object) -> str:
    """Data as JSON that no text in it can end the script element with."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def build(out: Path) -> None:
    """Writes the page."""
    data = {"MODELS": models(), "SOURCES": sources()}

    def part(match: re.Match[str]) -> str:
        name = match[1]
        return as_script(data[name]) if name in data else (HERE / name).read_text()

    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(re.sub(r"\{\{([\w.]+)\}\}", part, (HERE / "page.html").read_text()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the HTML file to write")
    build(parser.parse_args().out)
