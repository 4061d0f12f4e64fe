"""Writes the explorer, one HTML page that needs no network: `python docs/explorer/build.py OUT.html`.

The page's numbers come from resnet_core: the models from its registry, the source lines from its files, the live
network from `network.safetensors`. `page.html` says where each part goes.
"""

from __future__ import annotations

import argparse
import base64
import html
import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_core.models import backbone, cifar, resnet
from resnet_core.models.registry import MODELS, build_on_meta
from resnet_core.weights import WeightsInfo, read_info

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


def live(info: WeightsInfo) -> dict[str, Any]:
    """The trained network and the test images, each row of the picture a class."""
    assert info.transform is not None
    assert info.class_names is not None
    side = info.image_size
    sheet = np.asarray(Image.open(HERE / "images.png"))
    rows, columns = (pixels // side for pixels in sheet.shape)
    images = sheet.reshape(rows, side, columns, side).swapaxes(1, 2)
    return {
        "weights": encoded((HERE / "network.safetensors").read_bytes()),
        "images": encoded(images.tobytes()),
        "labels": np.repeat(np.arange(rows), columns).tolist(),
        "classes": info.class_names,
        "side": side,
        "mean": info.transform.mean[0],
        "deviation": info.transform.std[0],
    }


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def about(info: WeightsInfo) -> str:
    """The paragraph on the network, with the figures that network.py measured."""
    figures = json.loads((HERE / "network.json").read_text())
    network = build_on_meta(info.model, **info.config)
    words = {
        "model": info.model,
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
        "classes": ", ".join(info.class_names or ()),
        "top1": f"{figures['top1']:.2%}",
        "top1_of_run": f"{figures['top1_of_run']:.2%}",
        "count": f"{figures['count']:,}",
        "shown_right": str(figures["shown_right"]),
    }
    return re.sub(r"\[\[(\w+)\]\]", lambda match: html.escape(words[match[1]]), (HERE / "about.html").read_text())


def as_script(data: object) -> str:
    """Data as JSON that no text in it can end the script element with."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def build(out: Path, info: WeightsInfo | None = None) -> None:
    """Writes the page. `info` says of the network what its file says if it is left out."""
    info = info or read_info(HERE / "network.safetensors")
    assert info is not None
    parts = {
        "MODELS": as_script(models()),
        "SOURCES": as_script(sources()),
        "LIVE": as_script(live(info)),
        "about.html": about(info),
        "home": '<a href="../index.html">resnet_core</a>' if (out.parent.parent / "index.html").exists() else "",
    }

    def part(match: re.Match[str]) -> str:
        name = match[1]
        return parts[name] if name in parts else (HERE / name).read_text(encoding="utf-8")

    out.parent.mkdir(parents=True, exist_ok=True)
    page = (HERE / "page.html").read_text(encoding="utf-8")
    out.write_text(re.sub(r"\{\{([\w.]+)\}\}", part, page), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the HTML file to write")
    build(parser.parse_args().out)
