"""Every oracle computes what ours computes, and every entry of the ledger is measured with the real library."""

import pytest
import torch

from parity.drop_in import images
from parity.oracles import ORACLES
from parity.oracles.ledger import LEDGER
from resnet_core.comparison.compare import compare
from resnet_core.models.resnet import TABLE_1
from resnet_core.weights.libraries import LIBRARIES, NETWORKS

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

# Of those that each oracle lists. The others are larger, and of the same parts.
SMALL = ("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2")
ALIGNED = [key for key, oracle in ORACLES.items() if oracle.build]
ROUNDING = {"keras": LIBRARIES["keras"].bound, "onnxruntime": 1e-5}  # of the largest logit; the others give our bits


def skip_without(missing):
    """Skips where packages are missing, and imports none: Keras would choose its backend."""
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def test_the_oracles_have_the_models_that_their_libraries_have():
    assert {key: oracle.models for key, oracle in ORACLES.items()} == {
        "torchvision": NETWORKS,
        "timm": NETWORKS,
        "transformers": tuple(TABLE_1),
        "keras": ("resnet50", "resnet101", "resnet152"),
        "onnxruntime": NETWORKS,
    }


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key, oracle in ORACLES.items() for name in SMALL if name in oracle.models]
)
@torch.no_grad()
def test_oracle_gives_our_logits(key, name):
    skip_without([] if ORACLES[key].is_installed() else [key])
    torch.manual_seed(0)
    ours, theirs = ORACLES[key].networks(name)
    expected, found = theirs(images(seed=7)), ours(images(seed=7))
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    print(f"\n{key} {name}: {difference:.2g} at logits up to {largest:.3g}")
    assert difference <= ROUNDING.get(key, 0) * max(1, largest)


@pytest.mark.parametrize("key", ALIGNED)
def test_modules_of_the_oracle_are_aligned_with_ours_and_no_rung_differs(key):
    oracle = ORACLES[key]
    skip_without([] if oracle.is_installed() else [key])
    torch.manual_seed(0)
    comparison = compare(*oracle.networks("resnet18"), images(size=32))
    assert comparison, f"\n{comparison}"
    assert bool(comparison.renamed) == (key == "transformers")


@pytest.mark.parametrize("key", LEDGER)
def test_deviation_is_there_and_is_all_there_is(key):
    entry = LEDGER[key]
    skip_without(entry.missing)
    found = entry.measure()
    print(f"\n{key}: ignored {found.ignored:.2g}, allowed for {found.allowed:.2g}, bound {found.bound:.2g}")
    assert found.holds, found
    assert found == entry.measure()


# What each entry says that ours is asked for, taken out of it. The rest says it in words.
ASKED = [key for key, entry in LEDGER.items() if entry.config or entry.mistakes]


@pytest.mark.parametrize("key", ASKED)
def test_what_an_entry_asks_ours_for_is_what_removes_the_deviation(key):
    entry = LEDGER[key]
    skip_without(entry.missing)
    unasked = type(entry)(**{**vars(entry), "config": {}, "mistakes": ()})
    assert not unasked.measure().holds
