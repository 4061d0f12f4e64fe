"""The site's pages are true: their arithmetic, their names, their figures, the notes of the annotated source."""

import json
import re
import runpy
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch

import resnet_core
from tests.test_readme import PAGES, ROOT

DOCS = ROOT / "docs"
SITE = [page for page in PAGES if page.is_relative_to(DOCS)]
TIMES = "\N{MULTIPLICATION SIGN}"
READERS = {"tests/test_parity.py"}  # files that the reader of a page writes


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def equations():
    """Each `a + b = c` of a page."""
    for page in SITE:
        for left, right in re.findall(rf"`([\d., {TIMES}+/()-]+) = ([\d.,]+)`", page.read_text()):
            yield pytest.param(left, right, id=f"{page.name}: {left}")


@pytest.mark.parametrize(("left", "right"), list(equations()))
def test_arithmetic_of_a_page_is_right_to_the_last_digit_that_it_shows(left, right):
    expression = re.sub(r"(?<=\d),(?=\d{3})", "", left).replace(TIMES, "*")
    assert re.fullmatch(r"[\d. *+/()-]+", expression)
    shown = right.replace(",", "")
    places = len(shown.partition(".")[2])
    assert abs(eval(expression) - float(shown)) <= 0.5 * 10**-places + 1e-12


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_and_files_that_a_page_mentions_exist(page):
    text = page.read_text()
    for path in re.findall(r"\b((?:resnet_core|parity|tests|docs)/[\w/]+\.(?:py|md|svg|json|jsonl))\b", text):
        assert (ROOT / path).exists() or path in READERS, path
    for dotted in re.findall(r"\bresnet_core((?:\.[A-Za-z_]\w*)+)", text):
        place = ROOT / "resnet_core"
        parts = dotted[1:].split(".")
        while parts and ((place / parts[0]).is_dir() or (place / f"{parts[0]}.py").exists()):
            place /= parts.pop(0)
        if parts:
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            module = resnet_core if place.name == "resnet_core" else None
            assert re.search(rf"\b{parts[0]}\b", file.read_text()) or hasattr(module, parts[0]), f"resnet_core{dotted}"


@pytest.fixture(scope="module")
def figures():
    sys.path.insert(0, str(DOCS))  # where one script finds another
    yield runpy.run_path(str(DOCS / "figures.py"))["files"]()
    sys.path.remove(str(DOCS))


def test_figures_are_what_their_script_draws_and_small(figures):
    written = {path.name: path.read_text() for path in (DOCS / "figures").iterdir()}
    assert written == figures
    for name, text in figures.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(text)
            assert len(text) < 30_000, name


def test_figures_are_shown_in_light_and_dark():
    shown = {
        (path.rsplit("/", 1)[-1], mode)
        for page in [*SITE, *(DOCS / "figures").glob("*.md")]
        for path, mode in re.findall(r"\]\(([\w./-]+\.svg)\)\{\.only-(light|dark)\}", page.read_text())
    }
    assert {name for name, mode in shown if f"-{mode}.svg" not in name} == set()
    drawn = {path.name for path in (DOCS / "figures").glob("*.svg")}
    assert drawn <= {name for name, _ in shown}


def test_the_degradation_experiment_is_what_the_page_says_of_it():
    rows = [json.loads(line) for line in (DOCS / "results" / "degradation.jsonl").read_text().splitlines()]
    script = runpy.run_path(str(DOCS / "degradation.py"))
    assert [(row["kind"], row["depth"]) for row in rows] == script["NETS"]
    assert {row["steps"] for row in rows} == {script["STEPS"]}
    assert {len(row["train_error"]) * row["every"] for row in rows} == {script["STEPS"]}
    plain_20, residual_20, plain_56, residual_56 = (row["train_error"][-1] for row in rows)
    assert round(100 * (plain_20 - residual_20), 1) == 1.5
    assert round(100 * (plain_56 - residual_56)) == 16
    assert plain_56 > 3 * plain_20
    assert residual_20 < residual_56 < 0.52 * plain_56
    assert round(sum(row["cpu_minutes"] for row in rows)) == 13

    images = torch.randn(script["BATCH"], 1, 14, 14), torch.zeros(script["BATCH"], dtype=torch.long)
    assert script["train"]("plain", 20, [images, images], steps=1)["steps"] == 1
    plain, residual = (script["network"](kind, 20).state_dict() for kind in ("plain", "residual"))
    assert plain.keys() == residual.keys()
    assert all(plain[name].equal(residual[name]) for name in plain)


def test_each_definition_of_the_annotated_files_has_a_note_and_each_note_its_definition():
    source = (DOCS / "annotated.py").read_text().replace("from docutils", "#").replace("from sphinx", "#")
    annotated = {"SphinxDirective": object, "__file__": str(DOCS / "annotated.py"), "__name__": "annotated"}
    exec(source, annotated)
    for page in ("resnet", "cifar", "trainer"):
        (path,) = re.findall(r"^```\{annotated\} (.+)$", (DOCS / "annotated" / f"{page}.md").read_text(), re.MULTILINE)
        assert annotated["problems"](path) == []


def test_every_public_name_is_on_the_page_of_its_package():
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    for room in ("", *(f".{room}" for room in json.loads((ROOT / "tests/public_surface.json").read_text())["rooms"])):
        assert f"automodule:: resnet_core{room}\n" in pages


def test_every_page_is_in_the_table_of_contents_under_its_own_title():
    index = (DOCS / "index.md").read_text()
    trees = "".join(re.findall(r"^```\{toctree\}\n(.*?)```", index, re.MULTILINE | re.DOTALL))
    listed = {line for line in trees.splitlines() if line and not line.startswith(":")}
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in SITE}
    assert {page for page in pages if not page.startswith(("annotated/notes", "index"))} == listed


def test_a_page_ends_with_where_to_go_next():
    texts = [page for page in SITE if page.parent.name not in ("api", "notes", "report")]
    ends = {name_of(page): page.read_text().rstrip().rsplit("\n\n", 1)[-1] for page in texts}
    lost = {name for name, end in ends.items() if not re.search(r"\bNext: .*\]\(", end, re.DOTALL)}
    assert lost == {"docs/index.md", "docs/changelog.md"}
