"""Text from others, made safe to show: on a terminal, in Markdown and in HTML.

Names, descriptions, tags and messages come from data, imports and other machines. A terminal obeys escape sequences in
them, bidirectional controls make a text read otherwise than it is, and Markdown or HTML in them can load images or
run scripts where a card is rendered. What is shown here is the text itself, with such characters spelled out.
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
"""From four columns on, indented text is code."""
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def printable(text: str, *, breaks: bool = True) -> str:
    """The text with control, bidirectional and invisible characters written as `\\x1b` or `\\u202e`.

    Args:
        breaks: leave line breaks and tabs as they are.
    """
    return (_CONTROLS if breaks else _CONTROLS_AND_BREAKS).sub(lambda found: _spelled(found[0]), text)


def shell_word(word: str) -> str:
    """One argument as a POSIX shell reads it; with anything that cannot be seen, as `$'…'` in bash's spelling.

    No two arguments are written alike.
    """
    if not _CONTROLS_AND_BREAKS.search(word):
        return shlex.quote(word)
    quoted = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(quoted, breaks=False)}'"


def shell_line(words: tuple[str, ...] | list[str]) -> str:
    """A command as one line that a shell would take apart into the very same arguments."""
    return " ".join(shell_word(word) for word in words)


def markdown_text(text: str) -> str:
    """Plain text for a Markdown document: it shows as it is, and is neither a link, an image, a heading nor HTML."""
    safe = _MARKDOWN.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), printable(text))
    return _LINE_START.sub(_harmless_start, _INDENT.sub("   ", safe))


def markdown_cell(text: str) -> str:
    """As `markdown_text`, of one line, for a cell of a table."""
    return markdown_text(" ".join(text.split()))


def markdown_code(text: str) -> str:
    """A name as a code span in a table or a line. Backticks in it become quotes: nothing can end the span early."""
    plain = printable(" ".join(text.split()), breaks=False).replace("`", "'")
    return f"`{plain.replace('|', chr(92) + '|').replace('<', '&lt;').replace('>', '&gt;')}`"


def html_text(text: str) -> str:
    """Text for HTML, in an element or a quoted attribute."""
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
