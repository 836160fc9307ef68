"""The text of a csv file before anybody takes it for a table: its encoding, its separator, its header.

What is wrong here would not fail later, it would be a table of one column, of names nobody wrote, or of other letters.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
from typing import TYPE_CHECKING, Any

from everloop.data.reading_options import advice
from everloop.errors import SourceError, UsageError
from everloop.stores.home import find_places

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_HEAD_BYTES = 1 << 16
_CHUNK = 1 << 20
_OTHERS = (";", "\t", "|", ",")
_BOMS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF32_LE: "utf-32"}


def check_text(path: Path, options: Mapping[str, Any]) -> None:
    """Refuse what the beginning of a file shows to be wrong.

    Raises:
        SourceError: another encoding than UTF-8, another separator, line ends that are none, or two columns of a name.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    _refuse_encoding(path, head)
    lines = head.decode("utf-8-sig", errors="replace").splitlines()
    if not lines:
        return
    first_line = head.split(b"\n", 1)[0]
    if "eol_char" not in options and b"\r" in first_line.rstrip(b"\r"):
        raise SourceError(f"The lines of '{path}' end in CR alone.", help="Read it with eol_char='\\r'.")
    if options.get("has_header", True) is False:
        return
    skipped = [line for line in lines[int(options.get("skip_rows", 0)) :] if line.strip()]
    if not skipped:
        return
    separator = options.get("separator", ",")
    names = next(csv.reader([skipped[0]], delimiter=separator, quotechar=options.get("quote_char") or '"'), [])
    _refuse_separator(path, separator, names, skipped)
    doubled = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
    if doubled is not None:
        raise SourceError(f"'{path}' has two columns called '{doubled}'.", help="Rename one in its header.")


def refused_bytes(path: Path) -> SourceError | None:
    """What a file says that is no UTF-8, with its line; None where everything is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                wrong = error.object[error.start : error.start + 1]
                meant = wrong.decode("cp1252", errors="replace")
                return SourceError(
                    f"Line {line} of '{path}' has the byte 0x{wrong.hex()}, which is no UTF-8.",
                    **advice(f"If it means '{meant}', read it with {{}}.", encoding="cp1252"),
                )
            line += chunk.count(b"\n")
    return None


def recoded(path: Path, encoding: str) -> Path:
    """A copy of the file in UTF-8, in the store's cache; made once for what the file holds.

    Raises:
        SourceError: the file is in another encoding.
        UsageError: there is no such encoding.
    """
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise UsageError(f"There is no encoding '{encoding}'.", help="Such as utf-16, cp1252, latin-1.") from error
    seen = path.stat()
    name = hashlib.sha256(f"{path.resolve()} {seen.st_size} {seen.st_mtime_ns} {encoding}".encode()).hexdigest()[:32]
    copy = find_places(None)[0].home / "cache" / "recoded" / f"{name}.csv"
    if copy.exists():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_suffix(".part")
    try:
        with path.open(encoding=encoding, newline="") as source, part.open("w", encoding="utf-8", newline="") as target:
            while text := source.read(_CHUNK):
                target.write(text)
    except UnicodeError as error:
        part.unlink(missing_ok=True)
        raise SourceError(f"'{path}' is not in {encoding}: {error}.") from error
    part.replace(copy)
    return copy


def _refuse_encoding(path: Path, head: bytes) -> None:
    for bom, encoding in _BOMS.items():
        if head.startswith(bom):
            raise SourceError(f"'{path}' is in {encoding.upper()}.", **advice("Read it with {}.", encoding=encoding))
    if head[:512].count(b"\0") > len(head[:512]) // 4:
        raise SourceError(
            f"'{path}' is no UTF-8: it may be UTF-16.", **advice("Read it with {}.", encoding="utf-16-le")
        )
    line = head.split(b"\n", 1)[0]
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        found = refused_bytes(path)
        if found is not None:
            raise found from None


def _refuse_separator(path: Path, separator: str, names: list[str], lines: list[str]) -> None:
    """One column whose header and rows all fall into as many pieces by another separator is no column."""
    if len(names) > 1:
        return
    for other in _OTHERS:
        if other == separator:
            continue
        widths = [len(row) for row in csv.reader(lines[:50], delimiter=other)]
        if widths[0] > 1 and widths[:-1] == [widths[0]] * (len(widths) - 1):
            shown = "a tab" if other == "\t" else f"'{other}'"
            raise SourceError(
                f"'{path}' seems to be separated by {shown}, not by '{separator}'.",
                **advice("Read it with {}.", separator=other),
            )
