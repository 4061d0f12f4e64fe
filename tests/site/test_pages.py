"""Every page of the site in a real browser: `make site-test`."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.site.conftest import SITE

PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
WIDTHS = (400, 900, 1400)


@pytest.mark.parametrize("name", PAGES)
def test_page_opens_without_errors_at_every_width_in_light_and_dark(name, page, site, screenshots):
    """Whole pages in light, their first screens in dark."""
    page.goto((site / name).as_uri())
    assert page.title()
    if name.startswith("source/"):
        return

    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            too_wide = page.evaluate("document.documentElement.scrollWidth") - width
            assert too_wide <= 0, f"{name} scrolls sideways by {too_wide} px at {width} px"
            file = screenshots / f"{name.removesuffix('.html').replace('/', '-')}-{width}-{scheme}.jpg"
            page.screenshot(path=file, full_page=scheme == "light" and width != 900, type="jpeg", quality=70)
        serious = [
            f"{violation['id']}: {violation['nodes'][0]['html']}"
            for violation in Axe().run(page, options={"preload": False}).response["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        assert serious == []


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
