"""What tests of the web page do on every page: visit it, and ask axe about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.conftest import need
from tests.ui.conftest import UI

if TYPE_CHECKING:
    from tests.ui.conftest import Served

AXE = UI / "node_modules" / "axe-core" / "axe.min.js"


def visit(page: Any, server: Served, path: str) -> None:
    """Open a page and wait until everything on it has been read."""
    page.goto(f"{server.url}/#/{path}")
    page.wait_for_selector("h1")
    # What was there before stays until the next frame.
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")


SHAPE = """() => [
    ...['h1', 'main', 'nav'].map((name) => [name, document.querySelectorAll(name).length, 1]),
    ['empty h1', [...document.querySelectorAll('h1')].filter((one) => !one.innerText.trim()).length, 0],
    ['named page in the title', Number(/^.+ · everloop$/.test(document.title)), 1],
    ['skipped level of headings', [...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))
        .filter((level, index, all) => level > (all[index - 1] ?? 0) + 1).length, 0],
].filter(([, found, expected]) => found !== expected).map(([what, found]) => `${found} × ${what}`)"""


def complaints_of_shape(page: Any) -> list[str]:
    """Return what is missing in the frame of a page: one heading, one title, the landmarks, no skipped heading."""
    found: list[str] = page.evaluate(SHAPE)
    return found


def complaints_of_axe(page: Any) -> list[str]:
    """Return what axe finds serious or critical on the page as it is."""
    if not AXE.is_file():
        need("chromium", "axe-core", "install it with: cd ui && npm ci")
    if not page.evaluate("() => 'axe' in window"):
        # The debugger's scripts are let in beside the policy, which stays in force for the page itself.
        page.evaluate(AXE.read_text())
    result = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in result["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def confirm(page: Any, button: str, dialog: str, *, reason: str | None = None, inside: str | None = None) -> str:
    """Press a button, give a reason in its dialog and confirm; returns the command that the dialog showed."""
    page.get_by_role("button", name=button, exact=True).first.click()
    shown = page.get_by_role("dialog", name=dialog)
    if reason is not None:
        shown.get_by_role("textbox", name="Reason").fill(reason)
    command: str = shown.locator("code").last.inner_text()
    shown.get_by_role("button", name=inside or button, exact=True).click()
    shown.wait_for(state="hidden")
    return command


SETTLED = """async () => {
    const end = performance.now() + 5000;
    while (document.documentElement.scrollWidth > innerWidth && performance.now() < end) {
        await new Promise((done) => setTimeout(done, 50));
    }
    return document.documentElement.scrollWidth;
}"""


def settled_width(page: Any) -> int:
    """Return the width of a page in pixels once its charts fit the window: after a change they are drawn again."""
    return int(page.evaluate(SETTLED))
