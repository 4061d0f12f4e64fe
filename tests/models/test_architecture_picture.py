"""The drawn architecture is the live model's."""

import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import resnet_core

DOCS = Path(resnet_core.__file__).parent.parent / "docs"
SCRIPT = runpy.run_path(str(DOCS / "architecture.py"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_is_what_the_script_draws_and_small(theme):
    written = (DOCS / f"architecture-{theme}.svg").read_bytes()
    assert written.decode() == SCRIPT["picture"](SCRIPT["THEMES"][theme])
    assert len(written) < 30_000
    ElementTree.fromstring(written)


def test_the_picture_shows_the_stages_of_the_table_and_the_layers_of_a_bottleneck():
    root = ElementTree.fromstring((DOCS / "architecture-light.svg").read_bytes())
    words = [element.text.replace("\N{MULTIPLICATION SIGN}", "x") for element in root.iter() if element.text]
    for row in resnet_core.describe("resnet50").rows:
        if row.blocks:
            assert f"{row.blocks} blocks" in words
            assert " x ".join(map(str, row.output_shape)) in words
    for layer in ("1 x 1, 128", "3 x 3, 128, stride 2", "1 x 1, 512", "1 x 1, 512, stride 2"):  # v1.5
        assert layer in words
