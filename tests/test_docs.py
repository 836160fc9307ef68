"""The documentation: links lead somewhere, every page is in the site, and the map answers its own questions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
STOP_WORDS = {
    "a",
    "an",
    "any",
    "are",
    "by",
    "do",
    "does",
    "for",
    "from",
    "in",
    "is",
    "it",
    "its",
    "of",
    "on",
    "s",
    "that",
} | {
    "the",
    "to",
    "what",
    "where",
    "which",
}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{page.name} links to {target}"


def test_every_page_is_in_the_sites_navigation():
    named = set(re.findall(r"^\s*- (?:[^:]+: )?([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


QUESTIONS = re.findall(r"^\| (Where [^|]*\?) \| ([^|]*) \|$", (DOCS / "architecture.md").read_text(), re.MULTILINE)


def test_there_are_forty_questions():
    assert len(QUESTIONS) >= 40


@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_a_files_name_has_a_word_of_the_question(question, answer):
    asked = set(re.findall(r"[a-z]+", question.lower())) - STOP_WORDS
    for file in re.findall(r"`([^`]+)`", answer):
        assert (ROOT / "src" / "everloop" / file).is_file(), f"{question} {file}"
        named = set(re.findall(r"[a-z]+", file.removesuffix(".py").lower()))
        # Words with a common beginning are one: alias and aliases, scored and scoring.
        same = {(one, other) for one in asked for other in named if one[:4] == other[:4] or one in other}
        assert same, f"a search for '{question}' would miss {file}"
