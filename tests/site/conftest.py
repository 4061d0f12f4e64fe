"""A Chromium for the tests of the site (`make site-test`): without network, its errors and outside requests noted."""

import base64
import shutil
from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "docs" / "_build" / "html"
SCREENSHOTS = ROOT / "docs" / "_build" / "screenshots"
INSIDE = (SITE.as_uri() + "/", "data:", "blob:", "about:")
EXPLORER = (SITE / "explorer" / "index.html").as_uri()

WIDTHS = (400, 900, 1400)
TALLEST = 4000  # pixels of a page that its picture shows
SIZE = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
# The serious findings of axe. Contrast, which takes most of its time, is judged once for each look, a combination of
# colours and sizes: on a page of code thousands of words share a few. Where axe cannot judge a look by its first
# element (one letter, or cut off), it gets some thirty others. All else is the same in light and dark.
SERIOUS = """async (isWhole) => {
  const looks = new Map();
  const nothing = ["rgba(0, 0, 0, 0)", "none", "1"];
  for (const element of document.body.querySelectorAll("*")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!hasText || !element.checkVisibility({ visibilityProperty: true })) continue;
    const { color, fontSize, fontWeight } = getComputedStyle(element);
    const look = [color, fontSize, fontWeight];
    for (let behind = element; behind; behind = behind.parentElement) {
      const { backgroundColor, backgroundImage, opacity } = getComputedStyle(behind);
      look.push(...[backgroundColor, backgroundImage, opacity].filter((each) => !nothing.includes(each)));
      if (!backgroundColor.startsWith("rgba")) break;
    }
    if (!looks.has(look.join())) looks.set(look.join(), []);
    looks.get(look.join()).push(element);
  }
  const options = { preload: false, elementRef: true, resultTypes: ["violations", "passes"] };
  const contrast = { ...options, runOnly: { type: "rule", values: ["color-contrast"] } };
  const judge = (include) => (include.length ? axe.run({ include }, contrast) : { violations: [], passes: [] });
  const first = await judge([...looks.values()].map(([element]) => element));
  const judged = [...first.violations, ...first.passes].flatMap(({ nodes }) => nodes.map(({ element }) => element));
  const others = [...looks.values()]
    .filter(([element]) => !judged.includes(element))
    .flatMap((alike) => alike.filter((_, index) => index % Math.ceil(alike.length / 30) === 0));
  const results = [first, await judge(others)];
  if (isWhole) results.push(await axe.run(document, { ...options, rules: { "color-contrast": { enabled: false } } }));
  return results.flatMap(({ violations }) => violations)
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes[0].html}`);
}"""


@pytest.fixture(scope="session")
def site():
    """The folder of the built site."""
    assert (SITE / "index.html").exists(), "the site is not built: run make docs"
    return SITE


@pytest.fixture(scope="session")
def tab():
    """One tab for all tests of a process: a page costs less than a browser's new context."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    assert path, f"no Chromium on PATH ({', '.join(names)}): apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        context = browser.new_context(reduced_motion="reduce", offline=True)
        tab = context.new_page()
        problems = tab.problems = []
        tab.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: request.url.startswith(INSIDE) or problems.append(f"asks for {request.url}"))
        tab.on("requestfailed", lambda request: is_worker(request) or problems.append(f"cannot load {request.url}"))
        tab.cdp = context.new_cdp_session(tab)
        yield tab
        browser.close()


def is_worker(request):
    """One that was ended before it had begun, as the explorer's is when something more urgent is to be measured."""
    return request.url.startswith("blob:")


@pytest.fixture
def page(tab):
    """The tab, 1400 px wide and light.

    A test that uses it fails on a message in the console, an uncaught error, or a request that leaves the site.
    """
    tab.problems.clear()
    tab.set_viewport_size({"width": 1400, "height": 900})
    tab.emulate_media(color_scheme="light")
    yield tab
    assert tab.problems == []


def open_explorer(page, link, *, anew=False):
    """Shows a link of the explorer, which stays loaded from test to test unless it is opened `anew`."""
    if anew:
        page.goto("about:blank")
    page.goto(EXPLORER + link)
    page.evaluate("new Promise((resolve) => setTimeout(resolve))")  # the link has been read


def look_at(page, name):
    """Photographs the page at every width, light and dark; fails where it is too wide or axe has a serious finding."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.evaluate(AXE_SCRIPT)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        wide, tall = page.evaluate(SIZE)
        assert wide <= width, f"{name} scrolls sideways by {wide - width} px at {width} px"
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            clip = {"x": 0, "y": 0, "width": width, "height": min(tall, TALLEST), "scale": 1}
            how = {"format": "jpeg", "captureBeyondViewport": True, "optimizeForSpeed": True, "clip": clip}
            picture = page.cdp.send("Page.captureScreenshot", how)["data"]
            (SCREENSHOTS / f"{name}-{width}-{scheme}.jpg").write_bytes(base64.b64decode(picture))
            if width == WIDTHS[-1]:
                assert page.evaluate(SERIOUS, scheme == "light") == []
