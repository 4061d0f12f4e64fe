"""Published weights are found by every name that people use for them; docs/weights.md lists them."""

import enum
import re
from pathlib import Path

import pytest

from resnet_core.weights import catalog
from resnet_core.weights.catalog import CATALOG, WeightSet, find_weights, imagenet_classes

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"


class ResNet50_Weights(enum.Enum):  # noqa: N801
    """torchvision's enum by name and members; parity/test_catalog.py takes the real ones."""

    IMAGENET1K_V1 = 1
    IMAGENET1K_V2 = 2
    DEFAULT = 2


class ResNet18_Weights(enum.Enum):  # noqa: N801
    IMAGENET1K_V1 = 1


# V1 and V2, read from the names of the published files.
HASHES = {
    "resnet18": ["f37072fd"],
    "resnet34": ["b627a593"],
    "resnet50": ["0676ba61", "11ad3fa6"],
    "resnet101": ["63fe2227", "cd907fc2"],
    "resnet152": ["394f9c45", "f82ba261"],
    "resnext50_32x4d": ["7cdf4587", "1a0047aa"],
    "resnext101_32x8d": ["8ba56ff5", "110c445d"],
    "resnext101_64x4d": ["173b62eb"],
    "wide_resnet50_2": ["95faca4d", "9ba9bcbe"],
    "wide_resnet101_2": ["32ee1156", "d733dc28"],
    "cifar_resnet20": ["12fca82f"],
    "cifar_resnet32": ["d509ac18"],
    "cifar_resnet44": ["014dd654"],
    "cifar_resnet56": ["4bfd9763"],
    "cifar_resnet110": ["1d1ed7c2"],
}


def test_hashes_are_the_published_ones():
    assert {model: [row.sha256_prefix for row in sets.values()] for model, sets in CATALOG.items()} == HASHES


@pytest.mark.parametrize(
    ("name", "set_name"),
    [
        ("DEFAULT", "IMAGENET1K_V2"),
        ("IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("ResNet50_Weights.IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("ResNet50_Weights.DEFAULT", "IMAGENET1K_V2"),
        (ResNet50_Weights.IMAGENET1K_V1, "IMAGENET1K_V1"),
        (ResNet50_Weights.DEFAULT, "IMAGENET1K_V2"),
    ],
)
def test_each_name_of_a_set_finds_it(name, set_name):
    found = find_weights("resnet50", name)
    assert isinstance(found, WeightSet)
    assert (found.model, found.name) == ("resnet50", set_name)
    assert found is CATALOG["resnet50"][set_name]


def test_the_default_is_the_most_accurate_set():
    for model, sets in CATALOG.items():
        assert find_weights(model, "DEFAULT").top1 == max(row.top1 for row in sets.values())


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("resnet50", "imagenet1k_v1", "resnet50 has no weights 'imagenet1k_v1'; did you mean IMAGENET1K_V1 or"),
        ("resnet50", "V2", "resnet50 has no weights 'V2'; did you mean IMAGENET1K_V2?"),
        ("resnet18", "IMAGENET1K_V2", "resnet18 has no weights 'IMAGENET1K_V2'; did you mean IMAGENET1K_V1?"),
        ("resnet50", "ResNet50_Weights.V1", "resnet50 has no weights 'ResNet50_Weights.V1'; did you mean"),
        ("resnet50", "", "resnet50 has no weights ''; known are"),
        ("resnet50", ResNet18_Weights.IMAGENET1K_V1, "ResNet18_Weights.IMAGENET1K_V1 does not belong to resnet50"),
        ("resnet50", "ResNet18_Weights.IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1 does not belong to resnet50"),
        ("resnet5", "DEFAULT", "no weights are published for 'resnet5'; did you mean resnet50"),
        ("cifar_resnet20", "IMAGENET1K_V1", "cifar_resnet20 has no weights 'IMAGENET1K_V1'; known are CIFAR10_V1"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_reported_with_the_nearest(model, name, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        find_weights(model, name)


@pytest.mark.parametrize("name", [True, 1, None, b"DEFAULT"])
def test_anything_that_is_not_a_name_is_refused(name):
    with pytest.raises(TypeError, match=f"weights are chosen by name, .* got {name!r}"):
        find_weights("resnet50", name)


def test_class_names_are_a_thousand_and_differ():
    names = imagenet_classes()
    assert len(names) == len(set(names)) == find_weights("resnet50", "DEFAULT").num_classes
    assert all(name == name.strip() and name.isprintable() for name in names)
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")  # WordNet's order


def test_the_page_lists_every_set():
    rows = [row for sets in CATALOG.values() for row in sets.values()]
    assert [line for line in PAGE.read_text().splitlines() if re.match(r"\| `\w+` \| `\w+_V\d` \|", line)] == [
        f"| `{row.model}` | `{row.name}` | {row.top1:.3f} | {row.top5:.3f} | {row.transform.resize_size} | "
        f"`{row.model}-{row.sha256_prefix}.pth` |"
        if row.top5
        else f"| `{row.model}` | `{row.name}` | {row.top1:.2f} | `{row.url.rpartition('/')[2]}` |"
        for row in rows
    ]
    assert len(catalog.PUBLISHED) == 17
    assert [row.transform.crop_size for row in rows] == 17 * [224] + 5 * [32]
    assert {row.credit for row in rows[:17]} == {""}
    assert {row.credit.partition(", ")[0] for row in rows[17:]} == {"trained by Yerlan Idelbayev"}
