"""Check and clean the text of a CSV file before it is parsed: encoding, separator, header, comments, blank lines.

A mistake here would not fail later. It would give a table with a single column, invented names, wrong letters, or rows
of nulls.
"""

from __future__ import annotations

import codecs
import csv
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from everloop.data.sources.file_copies import copied
from everloop.data.sources.reading_options import Advice, advice
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
_TEXT_OPTIONS = ("encoding", "skip_rows", "skip_lines", "comment_prefix")
"""Options that this module handles."""


def plain_text(file: DataFile, options: Mapping[str, Any]) -> tuple[DataFile, dict[str, Any]]:
    """Return the file as plain CSV: UTF-8, without comments, blank lines and lines before the header.

    Returns:
        The file itself, or a cleaned copy in the store's cache if something had to be changed; and the options that
        are left to apply.

    Raises:
        SourceError: see `check_text`; or the file is not in the given encoding.
        UsageError: the encoding does not exist.
    """
    remaining = {name: value for name, value in options.items() if name not in _TEXT_OPTIONS}
    encoding = str(options.get("encoding") or "utf8")
    if encoding == "utf8-lossy":
        remaining["encoding"] = encoding
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
            return _data_lines(
                file.path,
                skip,
                prefix.encode() if prefix else None,
                quote.encode() if quote else None,
                b" \r\n" if tabs else b" \t\r\n",
            )

        copy = copied(file.path, f"plain {skip} {prefix!r} {quote!r} {tabs}", ".csv", lines)
        file = file.at(copy)
    else:
        remaining |= {
            name: options[name] for name in ("skip_rows", "skip_lines", "comment_prefix") if options.get(name)
        }
    if encoding != "utf8-lossy":
        check_text(file, remaining)
    return file, remaining


def check_text(file: DataFile, options: Mapping[str, Any]) -> None:
    """Check the beginning of a file for common mistakes.

    Raises:
        SourceError: the file has another separator, unsupported line endings, a comment at the top, or a header with
            an empty or repeated name.
    """
    head = _head(file.path)
    lines = head.decode("utf-8-sig", errors="replace").splitlines()
    if not lines:
        return
    first_line = head.split(b"\n", 1)[0]
    if "eol_char" not in options and b"\r" in first_line.rstrip(b"\r"):
        raise SourceError(
            f"The lines of '{file}' end in CR alone, not in LF or CR LF.",
            **advice(
                "Read it with {}.",
                otherwise=f"Convert its line endings: tr '\\r' '\\n' < '{file}' > copy.csv",
                eol_char="\r",
            ),
        )
    if options.get("has_header", True) is False:
        return
    from_header = _from_header(lines, options)
    if not from_header:
        return
    separator = options.get("separator", ",")
    _refuse_comment(file, separator, from_header)
    names = _header(from_header, options)
    other = _other_separator(separator, names, from_header)
    if other is not None:
        # Both at once: the next attempt would fail on the encoding otherwise.
        recode = {} if invalid_utf8(file, options) is None else {"encoding": "cp1252"}
        raise SourceError(
            f"'{file}' seems to be separated by {_shown(other)}, not by {_shown(separator)}.",
            **advice("Read it with {}.", all_of=True, **recode, separator=other),
        )
    if "new_columns" in options or "with_column_names" in options or options.get("schema") is not None:
        return
    repeated = next((name for index, name in enumerate(names) if name.strip() and name in names[:index]), None)
    if repeated is not None:
        numbers = [str(number) for number, name in enumerate(names, 1) if name == repeated]
        raise SourceError(
            f"'{file}' has two columns called '{repeated}': columns {' and '.join(numbers[:2])}.",
            help="Rename one of them in the header.",
        )
    unnamed = next((number for number, name in enumerate(names, 1) if not name.strip()), None)
    if unnamed is not None and not options.get("drop_unnamed"):
        raise SourceError(
            f"Column {unnamed} of {len(names)} in '{file}' has no name.", **_unnamed_advice(names, unnamed)
        )


def unnamed_columns(file: DataFile, options: Mapping[str, Any]) -> list[int]:
    """The indexes of columns without a name in the header; empty if the caller names all columns."""
    if options.get("has_header", True) is False or options.keys() & {"new_columns", "with_column_names", "schema"}:
        return []
    lines = _from_header(_head(file.path).decode("utf-8-sig", errors="replace").splitlines(), options)
    return [index for index, name in enumerate(_header(lines, options)) if not name.strip()]


def _from_header(lines: list[str], options: Mapping[str, Any]) -> list[str]:
    return [line for line in lines[int(options.get("skip_rows", 0)) :] if line.strip()]


def _header(lines: list[str], options: Mapping[str, Any]) -> list[str]:
    """The names in the header, which starts on the first of these lines."""
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
    """Whether a file has a header and nothing else."""
    return len(lines_of(file.path, 2)) < 2


def invalid_utf8(file: DataFile, options: Mapping[str, Any]) -> SourceError | None:
    """The error for the first byte of a file that is not valid UTF-8; None if all of them are."""
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
                    f"Line {line} of '{file}' contains the byte 0x{wrong.hex()}, which is not valid UTF-8.",
                    **_encoding_advice(f"If it should be '{meant}', read the file with {{}}.", file, "cp1252", options),
                )
            line += chunk.count(b"\n")
    return None


def recoded(file: DataFile, encoding: str) -> DataFile:
    """The file in UTF-8: a copy in the store's cache, made once per content of the file.

    Raises:
        SourceError: the file is not in this encoding.
        UsageError: the encoding does not exist.
    """
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise UsageError(
            f"There is no encoding '{encoding}'.", help="Use for example utf-16, cp1252 or latin-1."
        ) from error

    def pieces() -> Iterator[bytes]:
        with file.path.open(encoding=encoding, newline="") as source:
            while text := source.read(_CHUNK):
                yield text.encode()

    try:
        return file.at(copied(file.path, f"recoded {encoding}", ".csv", pieces))
    except UnicodeError as error:
        raise SourceError(f"'{file}' is not in {encoding}: {error}.") from error


def _head(path: Path) -> bytes:
    """The beginning of a file, with at least its whole first line."""
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
            # A blank line may span two chunks.
            start = chunk.rfind(b"\n")
            carried = chunk[start:] if start >= 0 and len(chunk) - start < _HEAD_BYTES else b""
    return carried[:1] == b"\n" and len(carried) > 1 and not carried.strip(b" \t\r\n")


def _data_lines(path: Path, skip: int, prefix: bytes | None, quote: bytes | None, blanks: bytes) -> Iterator[bytes]:
    """The lines that are neither blank nor comments, and all lines inside a quoted value."""
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
            raise SourceError(
                f"'{file}' is not a csv: it looks like {what}.",
                help="Give it the right suffix, or pass format= for what it is.",
                option_help="Give it the right suffix, or pass --format for what it is.",
            )
    for bom, encoding in _BOMS.items():
        if head.startswith(bom):
            raise SourceError(
                f"'{file}' is in {encoding.upper()}.", **_encoding_advice("Read it with {}.", file, encoding, options)
            )
    if head[:512].count(b"\0") > len(head[:512]) // 4:
        raise SourceError(
            f"'{file}' is not UTF-8: it may be UTF-16.",
            **_encoding_advice("Read it with {}.", file, "utf-16-le", options),
        )
    line = head.split(b"\n", 1)[0]
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        found = invalid_utf8(file, options)
        if found is not None:
            raise found from None


def _encoding_advice(sentence: str, file: DataFile, encoding: str, options: Mapping[str, Any]) -> Advice:
    """Name the encoding, and also the separator if the decoded text seems to have another one."""
    with file.path.open("rb") as stream:
        text = stream.read(_HEAD_BYTES).decode(encoding, errors="ignore").removeprefix("\ufeff")
    lines = _from_header(text.splitlines(), options)
    other = _other_separator(options.get("separator", ","), _header(lines, options), lines)
    return advice(sentence, all_of=True, encoding=encoding, **({} if other is None else {"separator": other}))


def _refuse_comment(file: DataFile, separator: str, lines: list[str]) -> None:
    """Refuse a first line that begins with # and has fewer fields than the next lines: it is not a header."""
    comments = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if not comments or comments >= len(lines):
        return
    width = len(next(csv.reader([lines[comments]], delimiter=separator), []))
    same = len(next(csv.reader([lines[comments - 1]], delimiter=separator), [])) == width
    if same and (width > 1 or not lines[comments - 1].startswith(("# ", "##"))):
        return  # the last comment is the header
    first = lines[0] if len(lines[0]) <= _SHOWN else f"{lines[0][:_SHOWN]}…"
    raise SourceError(
        f"'{file}' begins with a comment: '{first}'.",
        **advice("Skip comments with {}.", comment_prefix="#"),
    )


def _other_separator(separator: str, names: list[str], lines: list[str]) -> str | None:
    """The separator that splits the header and the rows of a single column into the same number of fields."""
    if len(names) > 1:
        return None
    for other in _OTHERS:
        widths = [len(row) for row in csv.reader(lines[:50], delimiter=other)]
        if other != separator and widths and widths[0] > 1 and widths[:-1] == [widths[0]] * (len(widths) - 1):
            return other
    return None


def _shown(separator: str) -> str:
    return "a tab" if separator == "\t" else f"'{separator}'"


def _unnamed_advice(names: list[str], number: int) -> Advice:
    if number == 1 and len(names) > 1:
        sentence = (
            "Name it in the header, or leave it out with {}. If pandas wrote it as the index, write the file with "
            "to_csv(index=False)."
        )
    elif number == len(names):
        sentence = "Name it in the header, or leave it out with {}."
    else:
        sentence = "Name it in the header, or leave out all columns without a name with {}."
    found = advice(sentence, drop_unnamed=True)
    if len(names) <= 8:
        new = [name.strip() or f"column_{index}" for index, name in enumerate(names, 1)]
        found["help"] += f" Or name all columns: new_columns={new!r}"
    return found
