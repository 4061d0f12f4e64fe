"""The explorer's page is built from the package; `make site-test` opens it in a browser."""

import re
import runpy
from pathlib import Path

import pytest

from resnet_core import list_models
from resnet_core.weights import read_info

FOLDER = Path(__file__).parent.parent / "docs" / "explorer"


@pytest.fixture(scope="module")
def script():
    """The names of build.py."""
    return runpy.run_path(str(FOLDER / "build.py"))


@pytest.fixture(scope="module")
def page(script, tmp_path_factory):
    out = tmp_path_factory.mktemp("explorer") / "index.html"
    script["build"](out)
    return out.read_text(encoding="utf-8")


def test_the_page_holds_every_model_and_every_class_in_less_than_a_megabyte_and_a_half(page):
    assert len(page.encode()) < 1_500_000
    assert all(f'"{name}":' in page for name in list_models())
    assert all(name in page for name in read_info(FOLDER / "network.safetensors").class_names)
    assert not re.findall(r"\{\{[\w.]+\}\}|\[\[[a-z]\w+\]\]", page)  # a part that build.py did not fill in


def test_the_page_asks_for_nothing_from_elsewhere(page):
    loads = re.findall(
        r"""(?:src|srcset|action|poster)=|url\(|@import|fetch\(|XMLHttpRequest|sendBeacon|WebSocket""", page
    )
    assert loads == []
    links = re.findall(r"""<link [^>]*href=["']([^"']{0,40})""", page)
    assert [link[:5] for link in links] == ["data:"]
    assert set(re.findall(r"https?://[\w./-]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_the_source_lines_are_the_files(script):
    for name, source in script["sources"]().items():
        folder = FOLDER.parent.parent / "resnet_core" / "models"
        lines = (folder / source["file"]).read_text().splitlines()
        text = source["text"].splitlines()
        assert lines[source["line"] - 1 : source["line"] - 1 + len(text)] == text, name


def test_text_in_data_cannot_end_the_script(script):
    assert "<" not in script["as_script"](["</script><img src=x>"])
