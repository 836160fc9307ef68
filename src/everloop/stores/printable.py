"""Making untrusted text safe to show on a terminal, in Markdown and in HTML.

Names, descriptions, tags and messages come from data, imports and other machines. They may contain escape sequences
that a terminal obeys, bidirectional controls that change how a text reads, or Markdown and HTML that load images or
run scripts when a model card is rendered. The functions here show such characters in escaped form.
"""

from __future__ import annotations

import re
import shlex
from html import escape

_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1: what terminals obey
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # invisible, or reorder
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_CONTROLS = re.compile(f"[{_UNSAFE}]")
_CONTROLS_AND_BREAKS = re.compile(f"[{_UNSAFE}\t\n]")
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_MARKDOWN = re.compile(r"[\\`*\[\]|~!#&<>]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_LINE_START = re.compile(r"^([ \t]*+)([-+](?=[ \t]|$)|(?:-++|=++)(?=[ \t]*+$)|\d{1,9}[.)](?=[ \t]|$))", re.MULTILINE)
_INDENT = re.compile(r"^(?:[ ]{4}|[ ]{0,3}\t)[ \t]*+", re.MULTILINE)
"""Markdown treats text that is indented by four columns or more as code."""
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def printable(text: str, *, breaks: bool = True) -> str:
    """Return the text with control, bidirectional and invisible characters escaped as `\\x1b` or `\\u202e`.

    Args:
        breaks: leave line breaks and tabs as they are.
    """
    return (_CONTROLS if breaks else _CONTROLS_AND_BREAKS).sub(lambda found: _spelled(found[0]), text)


def shell_word(word: str) -> str:
    """Quote one argument for a POSIX shell. If it has invisible characters, it becomes `$'…'` in bash's syntax.

    Two different arguments never give the same text.
    """
    if not _CONTROLS_AND_BREAKS.search(word):
        return shlex.quote(word)
    quoted = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(quoted, breaks=False)}'"


def shell_line(words: tuple[str, ...] | list[str]) -> str:
    """Join a command into one line that a shell splits into exactly the same arguments."""
    return " ".join(shell_word(word) for word in words)


def markdown_text(text: str) -> str:
    """Escape plain text for Markdown, so that it is never read as a link, an image, a heading or HTML."""
    safe = _MARKDOWN.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), printable(text))
    return _LINE_START.sub(_harmless_start, _INDENT.sub("   ", safe))


def markdown_cell(text: str) -> str:
    """As `markdown_text`, but on one line, for a table cell."""
    return markdown_text(" ".join(text.split()))


def markdown_code(text: str) -> str:
    """Format a name as a code span for a table or a line. Backticks become quotes, so nothing ends the span early."""
    plain = printable(" ".join(text.split()), breaks=False).replace("`", "'")
    return f"`{plain.replace('|', chr(92) + '|').replace('<', '&lt;').replace('>', '&gt;')}`"


def html_text(text: str) -> str:
    """Escape text for an HTML element or a quoted attribute."""
    return escape(printable(text))


def _spelled(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    number = ord(char)
    return f"\\x{number:02x}" if number < 128 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _harmless_start(found: re.Match[str]) -> str:
    # Lists, numbered lists and the underlining of headings.
    mark = found[2]
    return f"{found[1]}{mark[:-1]}\\{mark[-1]}"
