"""Take the pictures of the web page that the docs show: `python docs/screenshots.py URL`.

URL is that of a running server, such as one of `everloop demo`. It needs Chromium and Playwright. The pictures are
palette PNGs, so that all of them together stay small.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1280, "height": 800}
COLOURS = 256


def main(url: str) -> None:
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as running:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, path, theme in (
            ("web-page-loop", "loop", "light"),
            ("web-page-endpoint", "endpoints", "light"),
            ("web-page-incident", "monitor", "dark"),
        ):
            page = browser.new_context(viewport=SIZE, color_scheme=theme).new_page()
            page.goto(f"{url}/#/{path}")
            if path != "loop":
                page.locator(f"td a[href^='#/{path}/']").first.click()
            settle(page)
            save(page.screenshot(), IMAGES / f"{name}.png")
        browser.close()


def settle(page: Any) -> None:
    page.wait_for_selector("h1")
    page.wait_for_timeout(1000)
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')", timeout=60_000)
    page.wait_for_timeout(500)


def save(picture: bytes, path: Path) -> None:
    from PIL import Image

    whole = Image.open(io.BytesIO(picture)).convert("RGB")
    # The most frequent colours stay, so surfaces and lines have the page's own; blends at the edges of letters take the
    # nearest one.
    frequent = sorted(whole.getcolors(whole.width * whole.height), reverse=True)[:COLOURS]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in frequent for part in colour])
    whole.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size // 1024} KB\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1].rstrip("/"))
