"""The catalogue of mistakes against the ladder, and the report that the docs carry."""

import json
import sys
from pathlib import Path

import pytest
import torchvision

from parity import error_budget
from parity.__main__ import main
from parity.drop_in import DROP_IN
from parity.oracles import ORACLES, Oracle
from parity.patients import functional
from parity.planted import CATALOGUE, rungs_that_catch
from parity.report import Section, Settings, diagnoses, ladder, summary
from resnet_core.comparison.rungs import Rung

REPORT = Path(__file__).parent.parent / "docs" / "report"


def sections():
    return json.loads((REPORT / "parity.json").read_text())["sections"]


@pytest.mark.parametrize("mistake", CATALOGUE)
def test_no_mistake_survives_the_ladder(mistake):
    first = next(rungs_that_catch(mistake), None)
    assert first is not None
    (published,) = [row["rungs"] for row in sections()["Known mistakes made in ours"] if row["mistake"] == mistake]
    assert published[0] == first.name


def test_the_published_report_is_whole_and_has_no_failures():
    record = json.loads((REPORT / "parity.json").read_text())
    assert record["failures"] == []
    for name, oracle in ORACLES.items():
        rows = record["sections"][f"Ours beside {name}"]
        assert [row["model"] for row in rows] == list(oracle.models)
        for row in rows:
            assert [rung["name"] for rung in row["rungs"]] == list(Settings().rungs(oracle))
            assert "not run" not in {rung["status"] for rung in row["rungs"]}
            assert {rung["name"] for rung in row["rungs"] if rung["status"] == "differs"} == set(oracle.known)
    assert [row["mistake"] for row in record["sections"]["Known mistakes made in ours"]] == list(CATALOGUE)
    planted = [row["planted"] for row in record["sections"]["Known mistakes made in others' networks"]]
    assert planted[6:] == list(functional.MISTAKES)
    assert [row["model"] for row in record["sections"]["Error budget"]] == list(error_budget.MODELS)
    assert {rung["name"] for rung in record["sections"]["In the place of torchvision's"][0]["rungs"]} == set(DROP_IN)


@pytest.mark.parametrize("arithmetic", ["logits", "bfloat16"])
def test_the_error_budget_is_the_same_for_ours_and_torchvisions(arithmetic):
    ours, theirs = error_budget.errors("resnet18", arithmetic, size=32)
    assert 0 < ours == theirs


def test_the_docs_give_the_budget_that_was_measured():
    page = (REPORT.parent / "parity.md").read_text()
    measured = {row["model"]: row["errors"]["bfloat16"][0] for row in sections()["Error budget"]}
    assert f"{measured['resnet101']:.1e} of the largest logit for ResNet-101\nand {measured['resnet152']:.1e}" in page


def test_the_published_page_shows_what_was_measured():
    page = (REPORT / "parity.md").read_text()
    for section in sections().values():
        for row in section:
            assert row.get("model", row.get("mistake", row.get("planted", ""))) in page


@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--oracle", "tensorflow"]])
def test_a_report_that_cannot_be_made_is_refused_in_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["parity", *arguments])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_failures_are_counted():
    section = Section("title", "intro", ("model",))
    rung = {"name": "logits", "status": "differs", "seconds": 2.0}
    section.add(("resnet18",), {"model": "resnet18", "rungs": [rung]}, ["resnet18, logits: other"])
    assert summary([section]).splitlines() == [
        "1 comparisons: 1 differs; 1 failures",
        "slowest rung: logits of resnet18 beside torchvision, 2 s",
    ]
    assert "| resnet18 |" in section.markdown()


def wrong_resnet18(name):
    model = torchvision.models.get_model(name)
    model.bn1.eps = 1e-3
    return model


def test_a_wrong_network_fails_the_report(monkeypatch, capsys):
    oracle = Oracle(package="torch", models=("resnet18",), build=wrong_resnet18, source="torchvision")
    section = ladder("wrong", oracle, Settings(quick=True))
    assert section.failures[0].startswith("wrong resnet18, activations: differs first at bn1")
    assert "DIFFERS" in section.markdown()
    monkeypatch.setattr("parity.__main__.make", lambda settings: iter([section]))
    monkeypatch.setattr(sys, "argv", ["parity", "--quick"])
    assert main() == 1
    assert "FAILED  wrong resnet18, activations" in capsys.readouterr().out


def test_a_known_deviation_is_no_failure_and_one_that_is_gone_is(monkeypatch):
    rungs = tuple(Rung(name=name, status=status) for name, status in (("logits", "equal"), ("bfloat16", "differs")))
    monkeypatch.setattr("parity.report.climb", lambda oracle, name, settings: rungs)
    for known, failures in (({"bfloat16": "a reason"}, 0), ({}, 1), ({"bfloat16": "a reason", "logits": "another"}, 1)):
        oracle = Oracle(package="x", models=("resnet18",), build=wrong_resnet18, source="torchvision", known=known)
        assert len(ladder("x", oracle, Settings(quick=True)).failures) == failures


def test_a_wrong_diagnosis_fails_the_report(monkeypatch):
    monkeypatch.setattr(
        "parity.report.diagnoses_table", lambda: [("no stem ReLU", "unknown", False), ("healthy", "healthy", True)]
    )
    assert diagnoses().failures == ["no stem ReLU: unknown"]
