"""A Chromium for the tests of the site (`make site-test`): without network, its errors and outside requests noted."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "docs" / "_build" / "html"
SCREENSHOTS = ROOT / "docs" / "_build" / "screenshots"
INSIDE = (SITE.as_uri() + "/", "data:", "blob:", "about:")


@pytest.fixture(scope="session")
def site():
    """The folder of the built site."""
    assert (SITE / "index.html").exists(), "the site is not built: run make docs"
    return SITE


@pytest.fixture(scope="session")
def screenshots():
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    assert path, f"no Chromium on PATH ({', '.join(names)}): apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A fresh page, 1400 px wide and light.

    A test that uses it fails on a message in the console, an uncaught error, or a request that leaves the site.
    """
    context = browser.new_context(
        viewport={"width": 1400, "height": 900}, color_scheme="light", reduced_motion="reduce"
    )
    context.set_offline(True)
    page = context.new_page()
    problems = []
    page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(INSIDE) or problems.append(f"asks for {request.url}"))
    page.on("requestfailed", lambda request: problems.append(f"cannot load {request.url}"))
    page.problems = problems
    yield page
    context.close()
    assert problems == []
