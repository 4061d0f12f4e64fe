"""Every page of the site in a real browser: `make site-test`."""

import re
from urllib.parse import unquote

import pytest

from tests.site.conftest import SITE, look_at

PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)


@pytest.mark.parametrize("name", PAGES)
def test_page_opens_without_errors_at_every_width_in_light_and_dark(name, page, site):
    page.goto((site / name).as_uri())
    assert page.title()
    if not name.startswith(("source/", "genindex", "py-modindex")):
        look_at(page, name.removesuffix(".html").replace("/", "-"))


def test_search_works_without_a_network(page, site):
    page.goto((site / "search.html").as_uri() + "?q=bottleneck")
    page.wait_for_selector("ul.search li")
    assert "The blocks" in page.inner_text("ul.search")


def test_a_reader_switches_to_dark_and_sees_the_dark_figures(page, site):
    page.goto((site / "explained" / "blocks.html").as_uri())
    assert page.locator("img.only-light").first.is_visible()
    page.evaluate("document.body.dataset.theme = 'dark'")
    assert page.locator("img.only-dark").first.is_visible()
    assert not page.locator("img.only-light").first.is_visible()


def test_every_link_of_the_site_leads_to_a_page_and_a_place_on_it(site):
    texts = {path.resolve(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    places = {path: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for path, text in texts.items()}
    lost = []
    for path, text in texts.items():
        if path.parent.name == "explorer":
            continue  # it builds its links when it runs
        for link in set(re.findall(r'<(?:a|img|link|script)\b[^>]* (?:href|src)="([^"]+)"', text)):
            address, _, place = unquote(link).partition("#")
            if re.match(r"\w+:", address):
                continue
            target = (path.parent / address.partition("?")[0]).resolve() if address else path
            if not target.exists() or (
                place and target in places and "explorer" not in address and place not in places[target]
            ):
                lost.append(f"{path.relative_to(site.resolve())}: {link}")
    assert lost == []
