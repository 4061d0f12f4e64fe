"""Photographs the explorer for the README, with a Chromium: `.venv-docs/bin/python docs/explorer/picture.py`."""

import shutil
import sys
import tempfile
from pathlib import Path

from build import build
from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
VIEW = "#live?image=45&at=layer2.1&channel=4"


def photograph(chromium: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        build(Path(folder, "explorer.html"))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1460})
        page.goto(Path(folder, "explorer.html").as_uri() + VIEW)
        page.locator(".measured.chosen[data-right]").wait_for()
        page.screenshot(path=Path(folder, "page.png"))
        browser.close()
        Image.open(Path(folder, "page.png")).convert("RGB").save(out, quality=82, method=6)


if __name__ == "__main__":
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("No Chromium was found on PATH; install one: apt-get install chromium")
    photograph(chromium, HERE.parent / "explorer.webp")
