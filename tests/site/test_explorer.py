"""The explorer, driven as a reader drives it; its numbers are Python's."""

from itertools import cycle

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from resnet_core import list_models
from resnet_core.models.describe import _in_shortcut, _ReceptiveField
from resnet_core.models.registry import build_on_meta
from tests.site.conftest import open_explorer

NODES = """settings => [...Architecture.flatten(ArchitectureView.describe(settings)).values()].map(
    ({ source, formula, children, config, ...numbers }) => numbers)"""
TIMES = " \N{MULTIPLICATION SIGN} "


@pytest.fixture
def explorer(page):
    open_explorer(page, "#architecture")
    return page


# ---- the numbers


def nodes_of(explorer, **settings):
    """The page's nodes by path."""
    return {node["path"]: node for node in explorer.evaluate(NODES, settings)}


def measured(model, size, channels):
    """What PyTorch computes for each module: output shape, parameters, multiply-adds, receptive field."""
    field = _ReceptiveField()
    shapes, fields = {}, {}

    def record(path):
        def hook(module, inputs, output):
            shapes[path] = list(output.shape[1:])
            fields[path] = field.pixels

        return hook

    modules = dict(model.named_modules())
    for path, module in modules.items():
        if not _in_shortcut(path):
            module.register_forward_hook(field.widen)
        module.register_forward_hook(record(path))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, channels, size, size, device="meta"))

    flops = {path: sum(counts.values()) for path, counts in counter.get_flop_counts().items()}
    root = type(model).__name__
    return {
        path: {
            "shape": shapes[path],
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "multiplyAdds": flops.get(f"{root}.{path}" if path else "Global", 0) // 2,
            "field": fields[path],
        }
        for path, module in modules.items()
    }


def bytes_kept(model, size, channels):
    """Bytes of all tensors, other than the weights, that autograd keeps of one image for the backward pass."""
    weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept, alive = {}, []

    def keep(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(torch.empty(1, channels, size, size, device="meta"))
    return sum(kept.values())


def assert_equal(nodes, model, size, channels=3):
    """Every module's numbers, and the bytes of the whole network."""
    for path, numbers in measured(model, size, channels).items():
        if path not in nodes:
            assert path.endswith(("downsample", "maxpool")), f"the page has no {path}"  # an identity
            continue
        if path == "avgpool":
            numbers["shape"] = numbers["shape"][:1]
        if _in_shortcut(path):
            del numbers["field"]  # describe() does not follow the shortcut
        assert {key: nodes[path][key] for key in numbers} == numbers, path
    assert nodes[""]["kept"] == bytes_kept(model, size, channels)


@pytest.mark.parametrize(("name", "size"), list(zip(list_models(), cycle((64, 97, 224, 288)), strict=False)))
def test_every_layers_numbers_equal_pytorchs(name, size, explorer):
    nodes = nodes_of(explorer, model=name, size=size)
    assert_equal(nodes, build_on_meta(name), size)


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"model": "resnet50", "v1": True}, {"stride_in_1x1": True}),
        ({"model": "resnet50", "groups": 4, "width": 24}, {"groups": 4, "width_per_group": 24}),
        ({"model": "resnet18", "small": True, "classes": 7}, {"small_images": True, "num_classes": 7}),
        ({"model": "cifar_resnet20", "shortcut": "B", "channels": 1}, {"shortcut": "B", "in_channels": 1}),
    ],
    ids=str,
)
def test_the_settings_numbers_equal_pytorchs(settings, config, explorer):
    nodes = nodes_of(explorer, size=66, **settings)
    assert_equal(nodes, build_on_meta(settings["model"], **config), 66, settings.get("channels", 3))


# ---- the architecture, driven


def choose(explorer, model):
    explorer.locator("#a-model").select_option(model)


def resize(explorer, pixels):
    explorer.locator("#a-size").fill(str(pixels))
    explorer.locator("#a-size").press("Enter")


def row(explorer, path):
    return explorer.locator(f'tr[data-path="{path}"]')


def test_a_reader_picks_resizes_and_unfolds(explorer):
    choose(explorer, "resnet101")
    resize(explorer, 288)
    assert TIMES.join(("1024", "18", "18")) in row(explorer, "layer3").inner_text()

    explorer.get_by_role("button", name="Unfold layer3", exact=True).click()
    assert "21 blocks like 1" in row(explorer, "layer3.more").inner_text()
    explorer.get_by_role("button", name="Unfold layer3.0", exact=True).click()
    row(explorer, "layer3.0.conv2").locator(".pick").click()
    details = explorer.locator("#details")
    assert f"3{TIMES}3{TIMES}256{TIMES}256 = 589,824" in details.inner_text()
    line = "self.conv2 = conv3x3(width, width, stride_3x3, groups, dilation)"
    assert line in details.locator(".marked").first.inner_text()


def test_a_link_holds_all_that_was_chosen(explorer):
    choose(explorer, "resnet34")
    resize(explorer, 97)
    explorer.get_by_role("button", name="Unfold layer2", exact=True).click()
    row(explorer, "layer2.1").locator(".pick").click()
    link, text = explorer.url, explorer.locator("#architecture").inner_text()
    explorer.goto("about:blank")
    explorer.goto(link)
    assert explorer.locator("#architecture").inner_text() == text


def test_two_models_stand_side_by_side_with_their_differences_marked(explorer):
    explorer.get_by_role("button", name="Compare with another model").click()
    differs = row(explorer, "layer3").locator("td.differs")
    assert "7,098,368" in differs.all_inner_texts()[1]
    assert "26,090,496" in differs.all_inner_texts()[1]
    assert row(explorer, "layer2").locator("td.differs").count() == 0


def test_the_keyboard_suffices(explorer):
    open_explorer(explorer, "", anew=True)
    explorer.keyboard.press("Tab")
    assert explorer.evaluate("document.activeElement.className") == "skip"
    explorer.get_by_role("button", name="Unfold layer1", exact=True).focus()
    explorer.keyboard.press("Enter")
    explorer.keyboard.press("Tab")
    explorer.keyboard.press("Tab")
    assert explorer.evaluate("document.activeElement.dataset.key") == "fold-layer1.0"
    explorer.keyboard.press("Space")
    assert row(explorer, "layer1.0.conv1").is_visible()
    explorer.locator('[data-key="band-layer4"]').focus()
    explorer.keyboard.press("Enter")
    assert explorer.locator("#details h2").inner_text() == "layer4"


ODD_LINKS = (
    "#architecture?model=constructor&size=-3&groups=1e9&open=layer9,x&at=<b>",
    "#architecture?model=resnext50_32x4d&groups=5&b.model=resnet18&b.v1=1&b.width=7",
    "#live?image=1e9&cut=toString&at=constructor&map=toString&channel=-7&class=<b>",
    "#__proto__?model=resnet50",
)


def test_a_link_that_nobody_made_shows_what_it_can(page):
    for link in ODD_LINKS:
        open_explorer(page, link, anew=True)
        assert page.locator("main h2").first.is_visible()
        assert page.locator("main b").count() == 0
        if "b.model" in link:  # what a model does not have, a link cannot give it
            assert page.locator("#a-groups").input_value() == "32"
            assert page.locator("#b-width").input_value() == "64"
