"""The text of a csv file before it is taken for a table: its encoding, its separator, its header, its blank lines.

What is wrong here would not fail later: it would be a table of one column, of names that nobody wrote, of other
letters, or with rows of nulls.
"""

from __future__ import annotations

import codecs
import csv
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from everloop.data.sources.file_copies import copied
from everloop.data.sources.reading_options import advice
from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from everloop.data.sources.data_files import DataFile

_HEAD_BYTES = 1 << 16
_LONGEST_HEADER = 1 << 26
_CHUNK = 1 << 20
_OTHERS = (";", "\t", "|", ",")
_BOMS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF32_LE: "utf-32"}
_MAGIC = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF-": "a PDF",
}
_PADDED = re.compile(rb"\n[ \t]+\r?\n")
_SHOWN = 40
_OWN = ("encoding", "skip_rows", "skip_lines", "comment_prefix")
"""Options that are used up here."""


def plain_text(file: DataFile, options: Mapping[str, Any]) -> tuple[DataFile, dict[str, Any]]:
    """The file as plain csv: UTF-8, without comments, blank lines and lines before the header.

    Returns:
        The file itself, or a copy in the store's cache where something had to be left out; and the other options.

    Raises:
        SourceError: see `check_text`; or a file that is not in the encoding that was named.
        UsageError: there is no such encoding.
    """
    left = {name: value for name, value in options.items() if name not in _OWN}
    encoding = str(options.get("encoding") or "utf8")
    if encoding == "utf8-lossy":
        left["encoding"] = encoding
    elif encoding.lower().replace("-", "").replace("_", "") not in ("utf8", "utf8sig"):
        file = recoded(file, encoding)
    else:
        _check_encoding(file, options)
    skip = int(options.get("skip_rows") or 0) + int(options.get("skip_lines") or 0)
    prefix = options.get("comment_prefix") or None
    blank = _has_blank_lines(file.path, keep_tabs=options.get("separator") == "\t")
    if "eol_char" not in options and (skip or prefix or blank):
        quote = options.get("quote_char", '"')
        tabs = options.get("separator") == "\t"

        def lines() -> Iterator[bytes]:
            return _kept_lines(
                file.path,
                skip,
                prefix.encode() if prefix else None,
                quote.encode() if quote else None,
                b" \r\n" if tabs else b" \t\r\n",
            )

        copy = copied(file.path, f"plain {skip} {prefix!r} {quote!r} {tabs}", ".csv", lines)
        file = file.at(copy)
    else:
        left |= {name: options[name] for name in ("skip_rows", "skip_lines", "comment_prefix") if options.get(name)}
    if encoding != "utf8-lossy":
        check_text(file, left)
    return file, left


def check_text(file: DataFile, options: Mapping[str, Any]) -> None:
    """Refuse what the beginning of a file shows to be wrong.

    Raises:
        SourceError: another separator, line ends that are none, a comment at the top, or a header with a name that is
            empty or stands there twice.
    """
    head = _head(file.path)
    lines = head.decode("utf-8-sig", errors="replace").splitlines()
    if not lines:
        return
    first_line = head.split(b"\n", 1)[0]
    if "eol_char" not in options and b"\r" in first_line.rstrip(b"\r"):
        raise SourceError(
            f"The lines of '{file}' end in CR alone.",
            **advice(
                "Read it with {}.",
                otherwise=f"Convert its line ends: tr '\\r' '\\n' < '{file}' > copy.csv",
                eol_char="\r",
            ),
        )
    if options.get("has_header", True) is False:
        return
    skipped = _from_header(lines, options)
    if not skipped:
        return
    separator = options.get("separator", ",")
    _refuse_comment(file, separator, skipped)
    names = _header(skipped, options)
    _refuse_separator(file, separator, names, skipped)
    if "new_columns" in options or "with_column_names" in options or options.get("schema") is not None:
        return
    doubled = next((name for place, name in enumerate(names) if name.strip() and name in names[:place]), None)
    if doubled is not None:
        places = [str(place) for place, name in enumerate(names, 1) if name == doubled]
        raise SourceError(
            f"'{file}' has two columns called '{doubled}': columns {' and '.join(places[:2])}.",
            help="Rename one in its header.",
        )
    unnamed = next((place for place, name in enumerate(names, 1) if not name.strip()), None)
    if unnamed is not None and not options.get("drop_unnamed"):
        raise SourceError(f"Column {unnamed} of {len(names)} in '{file}' has no name.", **_unnamed(names, unnamed))


def unnamed_places(file: DataFile, options: Mapping[str, Any]) -> list[int]:
    """Which columns have no name in the header, counted from 0; none where the caller names all columns."""
    if options.get("has_header", True) is False or options.keys() & {"new_columns", "with_column_names", "schema"}:
        return []
    lines = _from_header(_head(file.path).decode("utf-8-sig", errors="replace").splitlines(), options)
    return [place for place, name in enumerate(_header(lines, options)) if not name.strip()]


def _from_header(lines: list[str], options: Mapping[str, Any]) -> list[str]:
    return [line for line in lines[int(options.get("skip_rows", 0)) :] if line.strip()]


def _header(lines: list[str], options: Mapping[str, Any]) -> list[str]:
    """The names in the first of these lines."""
    quote = options.get("quote_char", '"')
    reader = csv.reader(
        (f"{line}\n" for line in lines),
        delimiter=options.get("separator", ","),
        quotechar=quote,
        quoting=csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL,
    )
    return next(reader, [])


def lines_of(path: Path, count: int) -> list[str]:
    """The first lines of a file."""
    head = _head(path)
    return list(islice(head.decode("utf-8-sig", errors="replace").splitlines(), count))


def has_no_rows(file: DataFile) -> bool:
    """Whether a file is a header only."""
    return len(lines_of(file.path, 2)) < 2


def refused_bytes(file: DataFile) -> SourceError | None:
    """What a file says that is no UTF-8, with its line; None where everything is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with file.path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                wrong = error.object[error.start : error.start + 1]
                meant = wrong.decode("cp1252", errors="replace")
                return SourceError(
                    f"Line {line} of '{file}' has the byte 0x{wrong.hex()}, which is no UTF-8.",
                    **advice(f"If it means '{meant}', read it with {{}}.", encoding="cp1252"),
                )
            line += chunk.count(b"\n")
    return None


def recoded(file: DataFile, encoding: str) -> DataFile:
    """The file in UTF-8: a copy in the store's cache, made once for what the file holds.

    Raises:
        SourceError: the file is in another encoding.
        UsageError: there is no such encoding.
    """
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise UsageError(f"There is no encoding '{encoding}'.", help="Such as utf-16, cp1252, latin-1.") from error

    def pieces() -> Iterator[bytes]:
        with file.path.open(encoding=encoding, newline="") as source:
            while text := source.read(_CHUNK):
                yield text.encode()

    try:
        return file.at(copied(file.path, f"recoded {encoding}", ".csv", pieces))
    except UnicodeError as error:
        raise SourceError(f"'{file}' is not in {encoding}: {error}.") from error


def _head(path: Path) -> bytes:
    """The beginning of a file, at least its first line."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        while b"\n" not in head and len(head) < _LONGEST_HEADER and (more := stream.read(_CHUNK)):
            head += more
    return head


def _has_blank_lines(path: Path, *, keep_tabs: bool) -> bool:
    carried = b"\n"
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            chunk = carried + chunk.removeprefix(codecs.BOM_UTF8) if carried == b"\n" else carried + chunk
            if b"\n\n" in chunk or b"\n\r\n" in chunk:
                return True
            found = _PADDED.search(chunk)
            if found is not None and not (keep_tabs and b"\t" in found[0]):
                return True
            # A blank line may lie across two chunks.
            start = chunk.rfind(b"\n")
            carried = chunk[start:] if start >= 0 and len(chunk) - start < _HEAD_BYTES else b""
    return carried[:1] == b"\n" and len(carried) > 1 and not carried.strip(b" \t\r\n")


def _kept_lines(path: Path, skip: int, prefix: bytes | None, quote: bytes | None, blanks: bytes) -> Iterator[bytes]:
    """Lines that are neither blank nor comments, and those inside a quoted value."""
    quoted = False
    with path.open("rb") as stream:
        for number, line in enumerate(stream):
            if number == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if number < skip:
                continue
            if not quoted and (not line.strip(blanks) or (prefix is not None and line.startswith(prefix))):
                continue
            if quote is not None and line.count(quote) % 2:
                quoted = not quoted
            yield line


def _check_encoding(file: DataFile, options: Mapping[str, Any]) -> None:
    with file.path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise SourceError(f"'{file}' is not a csv: it begins as {what} does.", help="Name it, or pass format=, so.")
    for bom, encoding in _BOMS.items():
        if head.startswith(bom):
            raise SourceError(f"'{file}' is in {encoding.upper()}.", **advice("Read it with {}.", encoding=encoding))
    if head[:512].count(b"\0") > len(head[:512]) // 4:
        raise SourceError(
            f"'{file}' is no UTF-8: it may be UTF-16.", **advice("Read it with {}.", encoding="utf-16-le")
        )
    line = head.split(b"\n", 1)[0]
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        found = refused_bytes(file)
        if found is not None:
            raise found from None


def _refuse_comment(file: DataFile, separator: str, lines: list[str]) -> None:
    """A first line that begins with # and has fewer fields than the next ones is not a header."""
    comments = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if not comments or comments >= len(lines):
        return
    width = len(next(csv.reader([lines[comments]], delimiter=separator), []))
    same = len(next(csv.reader([lines[comments - 1]], delimiter=separator), [])) == width
    if same and (width > 1 or not lines[comments - 1].startswith(("# ", "##"))):
        return  # the last of them is the header, written as a comment
    first = lines[0] if len(lines[0]) <= _SHOWN else f"{lines[0][:_SHOWN]}…"
    raise SourceError(
        f"'{file}' begins with a comment: '{first}'.",
        **advice("Leave out such lines with {}.", comment_prefix="#"),
    )


def _refuse_separator(file: DataFile, separator: str, names: list[str], lines: list[str]) -> None:
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
                f"'{file}' seems to be separated by {shown}, not by '{separator}'.",
                **advice("Read it with {}.", separator=other),
            )


def _unnamed(names: list[str], place: int) -> Any:
    if place == 1 and len(names) > 1:
        more = "Name it in the header, or leave it out with {}; pandas writes none with to_csv(index=False)"
    elif place == len(names):
        more = "Name it in the header, or leave it out with {}"
    else:
        more = "Name it in the header, or leave out all that have none with {}"
    told = advice(f"{more}.", drop_unnamed=True)
    new = [name.strip() or f"column_{number}" for number, name in enumerate(names, 1)]
    shown = f" Or name all columns: new_columns={new!r}" if len(names) <= 8 else ""
    return {**told, "help": told["help"] + shown}
