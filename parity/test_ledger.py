"""The oracles' table and the ledger: what can be said without any other library than torchvision."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import resnet_core
from parity.oracles import ORACLES, Oracle, composer, ledger
from parity.oracles.ledger import LEDGER, Measured

OWN = [key for key, entry in LEDGER.items() if not entry.needs]


@pytest.mark.parametrize("key", OWN)
def test_deviation_is_there_and_is_all_there_is(key):
    found = LEDGER[key].measure()
    assert found.holds, found


def test_entries_of_the_paper_torchvision_and_composer_need_no_other_library():
    assert [LEDGER[key].implementation for key in OWN] == [
        "He et al. 2015",
        "torchvision",
        "Composer's CIFAR ResNet",
        "Composer's CIFAR ResNet",
    ]


@pytest.mark.parametrize("key", ["paper: v1", "Composer CIFAR: shortcut B"])
def test_what_an_entry_asks_ours_for_is_what_removes_the_deviation(key):
    entry = LEDGER[key]
    asked = replace(entry, config={}).measure()
    assert not asked.holds
    assert asked.allowed >= asked.ignored == entry.measure().ignored


@pytest.mark.parametrize(("name", "parameters"), [("resnet_20", 272_474), ("resnet_56", 855_770)])
def test_composers_cifar_networks_have_the_parameters_of_shortcut_b(name, parameters):
    ours = resnet_core.composer_resnet_cifar(name)
    assert ledger.count(composer.network(name)) == ledger.count(ours.module) == parameters
    assert ledger.count(resnet_core.cifar_resnet20()) == 269_722  # shortcut A, the paper's


def test_a_measurement_holds_only_between_rounding_and_difference():
    assert Measured(ignored=1.0, allowed=0.0, bound=0.0, unit="").holds
    assert not Measured(ignored=0.0, allowed=0.0, bound=0.0, unit="").holds
    assert not Measured(ignored=1.0, allowed=1e-5, bound=1e-6, unit="").holds
    assert not Measured(ignored=1.0, allowed=float("nan"), bound=1e-6, unit="").holds


def test_measuring_leaves_the_random_numbers_of_the_caller():
    before = torch.get_rng_state()
    LEDGER["Composer CIFAR: shortcut B"].measure()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_ledger_prints_what_it_skips_and_what_does_not_hold(monkeypatch, capsys):
    paper = LEDGER["paper: v1"]
    entries = {
        "missing": replace(paper, needs=("no_such_package",)),
        "wrong": replace(paper, config={}),
        "right": paper,
    }
    monkeypatch.setattr(ledger, "LEDGER", entries)
    assert ledger.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "skipped: no_such_package is not installed" in lines[1]
    assert [line.endswith("DOES NOT HOLD") for line in lines if line.startswith(("wrong", "right"))] == [True, False]
    assert "    there: on the first 1x1; ours: on the 3x3 (v1.5); to get theirs: stride_in_1x1=True" in lines


def test_an_entry_names_known_mistakes_alone():
    with pytest.raises(ValueError, match=r"got 'no stem'; did you mean no stem ReLU"):
        replace(LEDGER["paper: v1"], mistakes=("no stem",))


def test_deviations_of_the_oracles_stand_in_the_ledger():
    named = {key for oracle in ORACLES.values() for key in oracle.deviations}
    assert named <= set(LEDGER)
    assert {key.partition(":")[0] for key in LEDGER.keys() - named} == {"paper", "Flax", "Composer CIFAR"}


def test_an_oracle_is_built_in_one_way():
    with pytest.raises(ValueError, match="either build or pair, timm has both or none"):
        replace(ORACLES["timm"], pair=ORACLES["keras"].pair)
    with pytest.raises(ValueError, match="either build or pair"):
        Oracle(package="timm", models=("resnet18",))
    with pytest.raises(ValueError, match="give timm both, or none"):
        replace(ORACLES["timm"], source=None)


def test_the_table_of_oracles_imports_none_of_them():
    code = f"import sys, parity.oracles; print([name for name in {[*ORACLES]} if name in sys.modules])"
    root = Path(__file__).parent.parent
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert printed == "[]\n"


@torch.no_grad()
def test_torchvisions_network_takes_our_weights_by_name_and_gives_our_bits():
    torch.manual_seed(0)
    ours, theirs = ORACLES["torchvision"].networks("resnet18")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))
    assert not ours.training
    assert not theirs.training
