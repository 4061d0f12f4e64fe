"""The network that runs in the explorer computes what PyTorch's does, whole and with each change."""

import json
import runpy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from resnet_core.models.resnet import BasicBlock
from resnet_core.weights import load_model, read_info
from tests.site.conftest import ROOT, SITE, look_at, open_explorer

FOLDER = ROOT / "docs" / "explorer"
NETWORK = FOLDER / "network.safetensors"
LIVE = "#live?image=1"
LABELS = torch.arange(10).repeat_interleave(10)

BLOCKS = [f"layer{stage}.{number}" for stage in (1, 2, 3) for number in (0, 1, 2)]
SWITCHES = {
    "shortcuts": {"cut": BLOCKS},
    "norm": {"noNorm": True},
    "relu": {"earlyRelu": True},
    "stride": {"lateStride": True},
}
EVERY_CHANGE = [
    {},
    *SWITCHES.values(),
    *({"skipped": [name]} for name in BLOCKS),
    {"cut": ["layer2.0"]},
    {"cut": BLOCKS[:5], "skipped": ["layer3.1"], "noNorm": True, "earlyRelu": True, "lateStride": True},
]
LOGITS = """edits => LiveNetwork.images.filter((_, index) => index % 14 === 0).map(
    (image) => Network.run(LiveNetwork.tensors, image, { ...Network.UNCHANGED, ...edits }).logits)"""


@pytest.fixture(scope="module")
def images():
    """The shipped test images as the network takes them, ten of each class."""
    sheet = np.asarray(Image.open(FOLDER / "images.png")).reshape(10, 28, 10, 28)
    return normalised(sheet.swapaxes(1, 2).reshape(100, 1, 28, 28))


def normalised(pixels):
    transform = read_info(NETWORK).transform
    return (torch.tensor(pixels, dtype=torch.float32) / 255 - transform.mean[0]) / transform.std[0]


def logits_of(images, cut=(), skipped=(), noNorm=False, earlyRelu=False, lateStride=False):  # noqa: N803
    """The logits of the package's network with the same change."""
    model, _ = load_model(NETWORK)
    for name, module in list(model.named_modules()):
        if isinstance(module, BasicBlock):
            if lateStride:
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
            module.forward = partial(forward, module, name in cut, name in skipped, earlyRelu)
        elif noNorm and isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.Identity())
    with torch.inference_mode():
        return model(images)


def forward(block, is_cut, is_skipped, is_early, x):
    if is_skipped:
        return torch.relu(block.downsample(x))
    out = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    out = torch.relu(out) if is_early else out
    return torch.relu(out if is_cut else out + block.downsample(x))


def shown_logits(page):
    rows = page.locator("#answer button.class")
    return torch.tensor(rows.evaluate_all("rows => rows.map((row) => Number(row.dataset.logit))"))


def assert_close(found, expected):
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-3)


def wait_for_accuracy(page, right):
    page.locator(f'.measured.chosen[data-right="{right}"]').wait_for()


def test_logits_equal_pytorchs_with_every_change(page, images):
    open_explorer(page, LIVE)
    for edits in EVERY_CHANGE:
        assert_close(torch.tensor(page.evaluate(LOGITS, edits)), logits_of(images[::14], **edits))


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_the_answer_and_the_accuracy_as_in_pytorch(switch, page, images):
    open_explorer(page, "#live?image=35")
    page.locator(f"#switch-{switch}").check()
    logits = logits_of(images, **SWITCHES[switch])
    right = int((logits.argmax(1) == LABELS).sum())
    wait_for_accuracy(page, right)
    assert_close(shown_logits(page), logits[34])
    assert page.locator(".shipped .verdict.good").count() == right


def test_a_block_is_skipped_and_a_shortcut_cut_and_a_link_holds_it(page, images):
    open_explorer(page, LIVE)
    page.locator("#switch-skip").select_option("layer3.1")
    page.locator('[data-key="tile-layer2.1"]').click()
    page.locator("#block-cut").check()
    assert_close(shown_logits(page), logits_of(images[:1], skipped=["layer3.1"], cut=["layer2.1"])[0])

    link = page.url
    page.goto("about:blank")
    page.goto(link)
    assert page.locator(".tile.skipped .name").inner_text() == "layer3.1"
    assert page.locator(".tile.cut .name").inner_text() == "layer2.1"
    page.get_by_role("button", name="As trained", exact=True).click()
    assert page.locator(".tile.skipped, .tile.cut").count() == 0
    wait_for_accuracy(page, json.loads((FOLDER / "network.json").read_text())["shown_right"])


def test_the_evidence_adds_up_to_the_logit(page, images):
    open_explorer(page, LIVE)
    page.locator('[data-key="class-9"]').click()
    numbers = page.locator("#evidence .lines .number").all_inner_texts()
    *parts, logit = [float(text.replace("\N{MINUS SIGN}", "-")) for text in numbers]
    assert sum(parts) == pytest.approx(logit, abs=0.1)
    assert logit == pytest.approx(logits_of(images[:1])[0, 9].item(), abs=0.006)


def test_the_reader_draws_with_the_mouse_and_with_the_keyboard(page):
    open_explorer(page, LIVE)
    page.locator("#choose-draw").check()
    empty = shown_logits(page)
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 220, steps=5)
    page.mouse.up()
    drawn = shown_logits(page)
    assert not torch.equal(drawn, empty)

    page.get_by_role("button", name="Clear").click()
    assert torch.equal(shown_logits(page), empty)
    page.locator("#pad").focus()
    for key in (" ", *["ArrowRight"] * 5, " "):
        page.keyboard.press(key)
    assert not torch.equal(shown_logits(page), empty)


def test_a_photograph_gives_pytorchs_logits_and_its_name_stays_text(page, tmp_path):
    picture = Image.new("L", (280, 280), 250)
    ImageDraw.Draw(picture).polygon([(60, 40), (220, 40), (200, 260), (80, 260)], fill=70)
    file = tmp_path / "<img src=x onerror=alert(1)>.png"
    picture.save(file)
    open_explorer(page, LIVE)
    page.locator("#choose-photograph").check()
    page.locator("#photo").set_input_files(file)
    page.locator("#photo-status", has_text=file.name).wait_for()

    # White around the garment: the page inverts it.
    assert page.locator("#invert").is_checked()
    small = np.asarray(picture, dtype=float).reshape(28, 10, 28, 10).mean((1, 3))
    expected = logits_of(normalised((255 - small.round())[None, None]))[0]
    torch.testing.assert_close(shown_logits(page).float(), expected, rtol=0, atol=0.05)  # 1/255 by rounding
    assert file.name in page.locator("#milliseconds").inner_text()
    assert page.locator("main img").count() == 0

    (tmp_path / "notes.txt").write_text("no picture")
    page.locator("#photo").set_input_files(tmp_path / "notes.txt")
    page.locator("#photo-status", has_text="notes.txt cannot be read as an image").wait_for()


def test_the_keyboard_suffices(page, images):
    open_explorer(page, LIVE)
    page.locator('#gallery input[value="0"]').focus()
    page.keyboard.press("ArrowRight")
    assert_close(shown_logits(page), logits_of(images[1:2])[0])
    page.locator("#switch-norm").focus()
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.id") == "switch-norm"
    assert_close(shown_logits(page), logits_of(images[1:2], noNorm=True)[0])
    page.locator("#channel").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#channel-words").inner_text().startswith("Channel 2 ")


def test_class_names_stay_text(page):
    build = runpy.run_path(str(FOLDER / "build.py"))["build"]
    evil = "<b id=evil>&lt;</b></script><script>evil()</script>"
    out = SITE / "explorer" / "evil.html"
    try:
        build(out, replace(read_info(NETWORK), class_names=(evil,) * 10))
        page.goto(f"{out.as_uri()}{LIVE}")
        assert page.locator("#answer h2").inner_text().startswith(evil)
        assert page.locator("#evil").count() == 0
    finally:
        out.unlink(missing_ok=True)


def test_the_live_tab_is_readable_at_every_width_in_light_and_dark(page):
    open_explorer(page, f"{LIVE}&cut=layer2.0&skip=layer3.1")
    assert float(page.locator("#milliseconds").get_attribute("data-milliseconds")) < 300
    look_at(page, "explorer-live")
