"""Help texts, messages, docstrings, comments and docs are plain English; see CONTRIBUTING.md, "Words"."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "everloop"

TICS = {
    "is no X: say 'is not a X'": r"(?<!there )\b(?:is|are|was|were) no (?!longer\b|more\b|different\b|match\b)",
    "told, asked, said: data is passed, shown, requested or configured": r"\b(?:told|asked|said)\b",
    "whoever, whatever it may be": r"\b(?:whoever|whosoever)\b",
    "somebody, nobody, anybody": r"\b(?:somebody|nobody|anybody)\b",
    "anew: again": r"\banew\b",
    "so many: that many, or the number": r"\bso (?:many|much) (?!as\b|that\b|faster|slower|more|less)",
    "goes on: continues": r"\b(?:goes|go|going|went|gone) on\b(?! to\b)",
    "he for anyone": r"\b(?:he|him|his|she|her)\b",
    "turn for a run": r"(?<!in )\b(?:a|an|the|each|every|this|that|last|next|one|another|whose|killed) turns?\b"
    r"|\bturns? of (?:a|the) loop\b",
    "house, door: name the thing": r"\b(?:house|houses|door|doors)\b",
    "place: folder, URL, position, address": r"\b(?:a|an|the|this|that|its|which|whose|each|one|another|own|no)"
    r" places?\b(?! of\b)",
    "truth: label": r"(?<!ground )\b(?:the truth|truths?)\b(?! table)",
    "there is not: does not exist": r"\bthat there (?:is|are) (?:not|none)\b",
    "anything else's word": r"\b(?:by|on|with) whose word\b|'s word for\b",
}
"""What is wrong, and what to say instead -> a pattern, matched without case."""

PATTERNS = {why: re.compile(pattern, re.IGNORECASE) for why, pattern in TICS.items()}


def tics(text: str) -> list[str]:
    # Code in prose is named as it is.
    plain = re.sub(r"```.*?```|``[^`]*``|`[^`\n]*`", "`…`", text, flags=re.DOTALL)
    plain = re.sub(r"\s+", " ", plain)
    return [
        f"{why}: …{plain[max(0, found.start() - 30) : found.end() + 30]}…"
        for why, pattern in PATTERNS.items()
        for found in pattern.finditer(plain)
    ]


def python_prose(source: str) -> Iterator[tuple[int, str]]:
    """The prose of a module: (line, text) of each comment block and of each string that reads as a sentence."""
    lines: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if lines and token.start[0] == lines[-1][0] + 1:
                lines[-1] = token.start[0], lines[-1][1] + " " + token.string.lstrip("# ")
            else:
                lines.append((token.start[0], token.string.lstrip("# ")))
    yield from lines
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


PENDING_ROOMS: set[str] = set()
"""Parts that are still to be rewritten."""
PENDING_PAGES: set[str] = set()

PYTHON = sorted(path for path in SOURCE.rglob("*.py") if "static" not in path.parts)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in PAGES if page.name not in PENDING_PAGES]


ROOMS = sorted({path.relative_to(SOURCE).parts[0] for path in PYTHON} - PENDING_ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_sources_are_in_plain_words(room):
    found = []
    for path in PYTHON:
        if path.relative_to(SOURCE).parts[0] == room:
            for line, text in python_prose(path.read_text(encoding="utf-8")):
                found += [f"{path.relative_to(ROOT)}:{line}: {tic}" for tic in tics(text)]
    assert not found, f"{len(found)} places:\n" + "\n".join(found[:40])


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_docs_are_in_plain_words(page):
    found = tics((ROOT / page).read_text(encoding="utf-8"))
    assert not found, "\n".join(found[:40])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("'x' is no address to serve at.", 1),
        ("There is no package 'x'.", 0),
        ("The value is no longer used.", 0),
        ("Whoever asked is told so by somebody.", 4),
        ("Use `told` and `asked` here.", 0),
        ("The next turn goes on behind the door.", 3),
    ],
)
def test_tics_are_found(text, count):
    assert len(tics(text)) == count
