"""What others write is shown as text: on a terminal, in cards, in pages. None of it runs or loads anything."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, strategies as st
from markdown_it import MarkdownIt

import everloop
from everloop.cli import output
from everloop.cli.app import run as command_line
from everloop.data import profile_page, profile_snapshot, take_snapshot
from everloop.errors import UsageError
from everloop.records import GateResult, Package, Run, Source
from everloop.registry import describe, register, set_alias, tag, version_card
from everloop.stores import Store, open_store
from everloop.stores.printable import markdown_cell, markdown_code, markdown_text, printable, shell_line, shell_word
from everloop.tracking.display import html_of, panel_of

SOURCES = Path(everloop.__file__).parent
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></table><iframe src=//evil>",
    "<!-- ",
    "]]>",
    "&lt;b&gt;",
    "[click](javascript:alert(1))",
    "![x](https://evil/pixel.png)",
    "[x][y]\n\n[y]: javascript:alert(1)",
    "<javascript:alert(1)>",
    "<https://evil>",
    "`code` | x",
    "``` \nfence",
    "~~~\nfence",
    "# heading",
    "heading\n===",
    "heading\n---",
    "- item",
    "1. item",
    "> quote",
    "**bold** __bold__ _x_ *y*",
    "| a | b |\n| - | - |\n| c | d |",
    "    indented",
    "a\\",
    "\\",
    "x\\[y](z)",
    "***",
    "- - -",
    "\x1b[2J\x1b]0;title\x07",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m",
    "a\rb",
    "a\x08\x08b",
    "a\x7f",
    "\x01",
    "\u202ereversed",
    "\u2066iso\u2069",
    "zero\u200bwidth",
    "\ufeffbom",
    "\u2028line\u2029par",
    "\U000e0041tag",
    "[bold red]markup[/bold red]",
    "[link=http://evil]x[/link]",
    "[/]",
    ":warning:",
    '" onmouseover="alert(1)',
    "'; --",
    "=cmd|' /C calc'!A0",
]
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.chdir(tmp_path)
    with open_store(tmp_path / "home") as opened:
        yield opened


# --- the words themselves ---------------------------------------------------------------------------------------


@given(st.text())
def test_printable_text_has_nothing_that_a_terminal_obeys(text: str) -> None:
    assert UNSEEN.search(printable(text)) is None
    assert printable(printable(text)) == printable(text)
    assert not set(printable(text, breaks=False)) & set("\n\t\r")


def test_text_in_any_script_stays_as_it_is() -> None:
    for text in ("größe", "データ", "рост", "العربية", "हिन्दी", "👩‍🔬", "a b\tc\nd", "x=1, y='2' \"z\" \\ $()"):
        assert printable(text) == text


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5))
def test_no_two_commands_are_written_alike(words: list[str]) -> None:
    line = shell_line(words)
    assert UNSEEN.search(line) is None
    assert "\n" not in line
    assert _read_back(line) == words


def _read_back(line: str) -> list[str]:
    """The arguments of a line, by the rules of a shell and of bash's `$'…'`."""
    words, at = [], 0
    while at < len(line):
        if line.startswith("$'", at):
            end = at + 2
            while line[end] != "'":
                end += 2 if line[end] == "\\" else 1
            word = re.sub(r"\\(x..|u....|U........|.)", _character, line[at + 2 : end])
            at = end + 1
        elif line[at] == "'":
            # shlex.quote writes a quote as '"'"'
            word, at = "", at
            while at < len(line) and line[at] != " ":
                quote = line[at]
                end = line.index(quote, at + 1)
                word, at = word + line[at + 1 : end], end + 1
        else:
            end = line.find(" ", at)
            end = len(line) if end < 0 else end
            word, at = line[at:end], end
        words.append(word)
        at += 1
    return words


def _character(found: re.Match[str]) -> str:
    kind, digits = found[1][0], found[1][1:]
    return chr(int(digits, 16)) if digits else {"n": "\n", "t": "\t", "r": "\r"}.get(kind, kind)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_reads_a_shown_command_as_it_was() -> None:
    words = [text for text in HOSTILE if "\0" not in text]
    script = "printf '%s\\0' " + " ".join(map(shell_word, words))
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout.decode().split("\0")[:-1] == words


# --- markdown ---------------------------------------------------------------------------------------------------


def rendered(text: str) -> list[str]:
    """The kinds of everything that a renderer makes of a document, HTML allowed."""
    kinds = []
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text):
        kinds.append(token.type)
        kinds += [child.type for child in token.children or ()]
    return kinds


HARMFUL = ("html", "link", "image", "code", "fence", "heading", "list", "blockquote", "hr", "strong", "em_", "s_open")


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_of_a_text_is_the_text(text: str) -> None:
    for form in (markdown_text(text), f"before\n\n{markdown_text(text)}\n\nafter", f"{markdown_cell(text)}"):
        kinds = rendered(form)
        assert not [kind for kind in kinds if kind.startswith(HARMFUL)], (form, kinds)
        assert "table_open" not in kinds
    table = f"| a | b |\n| --- | --- |\n| {markdown_cell(text)} | {markdown_code(text)} |\n"
    kinds = rendered(table)
    assert kinds.count("td_open") == 2
    assert not [kind for kind in kinds if kind.startswith(("html", "link", "image"))], kinds
    assert UNSEEN.search(table) is None


@given(st.text("#*_`[]()<>!&|~\\-+=.1 \n\tax:/", max_size=60))
def test_no_text_becomes_a_link_an_image_or_html(text: str) -> None:
    kinds = rendered(markdown_text(text)) + rendered(f"| a |\n| --- |\n| {markdown_cell(text)} |\n")
    assert not [kind for kind in kinds if kind.startswith(("html", "link", "image", "heading", "fence", "list"))]
    assert rendered(f"| a | b |\n| --- | --- |\n| {markdown_code(text)} | x |\n").count("td_open") == 2


@pytest.mark.slow
def test_a_card_shows_what_people_wrote_as_text(store: Store) -> None:
    plain = card_of(store, "plain", "A text.", ["a"])
    hostile = card_of(store, "hostile", "\n\n".join(HOSTILE), HOSTILE)
    for kind in (
        "heading_open",
        "table_open",
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "fence",
        "bullet_list_open",
    ):
        assert rendered(hostile).count(kind) == rendered(plain).count(kind), kind
    assert UNSEEN.search(hostile) is None
    assert "<script" not in hostile


def card_of(store: Store, model: str, description: str, texts: list[str]) -> str:
    inputs = [{"name": text, "type": text} for text in texts]
    package = store.new(
        Package,
        digest=f"sha256:{len(texts):064x}",
        format="linear",
        signature={"task": texts[0], "inputs": inputs},
        size_bytes=1,
        parity={"row_us": dict.fromkeys(texts, 1.0), "reasons": {text: text for text in texts}, "form": texts[0]},
    )
    source = Source(launch=tuple(texts), git_commit=texts[-1], python=texts[0], code=texts[0], changes=texts[0])
    run = store.new(Run, name="x", started_at=store.now(), source=source, trigger=texts[0])
    store.records.put(package, run)
    version = register(store, model, package, run=run.id, metrics=dict.fromkeys(texts, 1.0), description=description)
    describe(store, version.key, description)
    tag(store, version.key, {text: text for text in texts})
    for text in texts:
        gate = store.new(GateResult, gate=text, outcome="pass", candidate=version.key, message=text, champion=text)
        store.records.put(gate)
    set_alias(store, model, "champion", version.key, reason=" ".join(texts))
    return version_card(store, version.key)


# --- pages ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would do with a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "action", "xlink:href", "data")
        ]


def assert_harmless(text: str) -> None:
    page = Page(text)
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "a"}
    assert not page.handlers
    assert not page.addresses
    assert UNSEEN.search(text) is None


def test_a_profile_of_hostile_columns_is_a_page_of_texts(store: Store) -> None:
    columns = {f"{text} {number}": [text, f"{text}!", None, "x"] * 5 for number, text in enumerate(HOSTILE)}
    frame = pl.DataFrame({**columns, "<b>target</b>": [0, 1, 0, 1] * 5, "\x1b[2Jnumber": range(20)})
    snapshot = take_snapshot(frame, "odd", store, target="<b>target</b>")
    text = profile_page(profile_snapshot(snapshot, store))
    assert_harmless(text)
    assert "&lt;script&gt;" in text
    assert "default-src 'none'" in text


def test_a_run_shows_itself_as_text(store: Store) -> None:
    from io import StringIO

    from rich.console import Console

    for text in HOSTILE:
        run = store.new(Run, name=text, started_at=store.now(), parent=text)
        assert_harmless(html_of(run, {text: text}, ended=True))
        out = StringIO()
        Console(file=out, width=300, color_system=None).print(panel_of(run, {text: text}, ended=True))
        assert UNSEEN.search(out.getvalue()) is None


def test_pages_of_ours_enter_text_only_as_text() -> None:
    for path in [*SOURCES.glob("server/static/*.js"), *SOURCES.glob("server/static/*.html")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), path


# --- terminals --------------------------------------------------------------------------------------------------


@pytest.fixture
def call(store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> object:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def called(*words: str) -> str:
        output.console.cache_clear()
        output.messages.cache_clear()
        capfd.readouterr()
        command_line([*words, "--home", str(store.home)])
        said = capfd.readouterr()
        return said.out + said.err

    return called


@pytest.mark.slow
def test_commands_spell_out_what_a_terminal_obeys(store: Store, call: object) -> None:
    runs = []
    for text in HOSTILE:
        source = Source(launch=("python", text), host=text, git_commit=text, python=text)
        fields = {
            "name": text or "x",
            "error": text,
            "params": {text: text},
            "tags": {text: text},
            "metrics": {text: 1.0},
        }
        runs.append(store.new(Run, started_at=store.now(), source=source, state="failed", trigger=text, **fields))
    store.records.put(*runs)
    card_of(store, "hostile", "\n".join(HOSTILE), HOSTILE)
    commands: list[tuple[str, ...]] = [
        ("runs", "ls", "--limit", "100"),
        ("runs", "diff", runs[0].id, runs[1].id),
        ("runs", "log", runs[-1].id),
        *(("runs", "show", run.id) for run in runs),
        ("models", "ls"),
        ("models", "show", "hostile@1"),
        ("models", "card", "hostile@1"),
        ("models", "history", "hostile@champion"),
        ("events",),
        ("lineage", "hostile@1"),
        ("runs", "show", "\x1b[2Jx\u202e"),
        ("models", "show", "\x1b[2J[bold]x"),
        ("reproduce", runs[30].id),
        ("reproduce", runs[30].id, "--show"),
        ("runs", "rm", runs[28].id),
        ("runs", "ls", "--where", "\x1b[2J"),
        ("runs", "ls", "--columns", "name,params.\x1b[2J"),
    ]
    for words in commands:
        text = call(*words)  # type: ignore[operator]
        assert text.strip(), words
        assert UNSEEN.search(text) is None, (words, UNSEEN.search(text))
        as_json = call(*words, "--json")  # type: ignore[operator]
        assert re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", as_json) is None, words


def test_markup_of_the_terminal_is_text(store: Store, call: object) -> None:
    run = store.new(
        Run, name="[bold red]name[/bold red] [link=http://evil]x[/link]", started_at=store.now(), state="finished"
    )
    store.records.put(
        replace(run, tags={"[red]t": "[/]", "list": ":warning:"}, params={"[b]": ["[c]", {"[d]": "[e]"}]})
    )
    for words in (("runs", "ls"), ("runs", "show", run.id)):
        text = call(*words)  # type: ignore[operator]
        assert "[bold red]name[/bold red] [link=http://evil]x[/link]" in text
    shown = call("runs", "show", run.id)  # type: ignore[operator]
    assert "[red]t=[/]" in shown
    assert "[b]=[c], [d]=[e]" in shown
    assert ":warning:" in shown


def test_errors_are_text_too(capfd: pytest.CaptureFixture[str]) -> None:
    output.messages.cache_clear()
    output.report(UsageError("a \x1b[2J [bold]b[/bold]", help="\x9b[red]c"), as_json=False)
    said = capfd.readouterr().err
    assert "\\x1b[2J [bold]b[/bold]" in said
    assert "\\u009b[red]c" in said


def test_every_command_writes_through_what_spells_out() -> None:
    """`say`, `emit`, `table`, `facts` and the two consoles; nothing prints beside them."""
    for path in sorted((SOURCES / "cli").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name not in ("output.py", "app.py"):
            assert "typer.echo(" not in text, path
        assert not re.search(r"(?<![\w.])print\(", text), path
        assert path.name == "output.py" or not re.search(r"(?<!\.)\bConsole\(", text), path
