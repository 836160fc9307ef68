"""Patches of a run's uncommitted changes: masked when they are recorded, checked and completed before they are applied.

A patch is the output of `git diff --binary`. Files that usually hold secrets (`.env`, private keys, `.netrc`, …) are
left out and listed in its first lines. In all other files, only the characters of secrets are replaced, and lines keep
their numbers. Context lines must match the commit, so those that were masked are read from the commit again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.tracking.secrets.masking import Masker
from everloop.tracking.secrets.secret_names import MARK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LEFT_OUT = "everloop left out: "
_SECRET_FILES = (
    ".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk",
    "*.tfvars", "*.ovpn", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pgpass", ".npmrc",
    ".pypirc", ".git-credentials", ".htpasswd", ".dockercfg", "credentials", "credentials.json", "credentials.y*ml",
    "client_secret*.json", "service-account*.json", "service_account*.json", "secrets.*", "secret.*", ".secrets*",
    "kubeconfig",
)  # fmt: skip
_EXAMPLES = ("*.example", "*.sample", "*.template", "*.dist", "*.pub", "*.py")
_UNQUOTED = (
    ".cfg",
    ".conf",
    ".config",
    ".ini",
    ".properties",
    ".sh",
    ".bash",
    ".yaml",
    ".yml",
    ".txt",
    ".md",
    ".mk",
    "",
)
"""Suffixes of files in which the values of `name=value` and `name: value` need no quotes."""
_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_HEADER = re.compile(r'diff --git (?:a/(.+) b/(.+)|"a/(.+)" "b/(.+)")')
_NAMING = ("--- ", "+++ ", "rename from ", "rename to ", "copy from ", "copy to ")
_MODES = re.compile(r"(?:new file mode|new mode|index [0-9a-f]{1,64}\.\.[0-9a-f]{1,64}) (\d{1,6})")
_PLAIN_MODES = ("100644", "100755")
_LINK = "120000"
_PEM_LINE = re.compile(r"[A-Za-z0-9+/=]{1,120}+")


@dataclass(frozen=True, slots=True)
class PatchedFile:
    """One file that a patch changes."""

    path: str
    added: int
    removed: int


def mask_patch(patch: bytes) -> bytes:
    """The patch with its secrets masked."""
    texts, left_out = [], []
    for lines in _sections(patch.decode("utf-8", "surrogateescape")):
        paths = _paths(lines)
        if any(_holds_secrets(path) for path in paths):
            left_out.append(paths[-1])
        else:
            texts.append(_masked(lines, paths[-1] if paths else ""))
    head = "".join(f"{_LEFT_OUT}{path}\n" for path in left_out)
    return f"{head}{''.join(texts)}".encode("utf-8", "surrogateescape")


def left_out(patch: bytes) -> list[str]:
    """The files that `mask_patch` left out."""
    found = []
    for line in patch.decode("utf-8", "replace").split("\n"):
        if not line.startswith(_LEFT_OUT):
            break
        found.append(line.removeprefix(_LEFT_OUT))
    return found


def check_patch(patch: bytes, *, links: bool = False) -> list[PatchedFile]:
    """Check a patch, and return the files that it changes.

    Args:
        links: whether it may create symbolic links. A patch that was made on this machine may.

    Raises:
        UsageError: it changes something outside of its folder or in `.git`, or creates a link or a submodule.
    """
    found = []
    for lines in _sections(patch.decode("utf-8", "surrogateescape")):
        paths = _paths(lines)
        if not paths:
            continue
        for path in paths:
            pure = PurePosixPath(path)
            if not path or pure.is_absolute() or ".." in pure.parts:
                raise _refused(f"it changes '{path}', which is outside of the repository")
            if any(part.lower().rstrip(". ") == ".git" for part in pure.parts):
                raise _refused(f"it changes '{path}', which belongs to git itself")
        for line in _head(lines):
            mode = _MODES.match(line)
            if mode is not None and mode[1] not in (*_PLAIN_MODES, _LINK if links else ""):
                raise _refused(f"it makes '{paths[-1]}' something other than a file (mode {mode[1]})")
        body = lines[len(_head(lines)) :]
        added, removed = (sum(line.startswith(sign) for line in body) for sign in "+-")
        found.append(PatchedFile(paths[-1], added, removed))
    return found


def completed(patch: bytes, folder: Path, given: Mapping[str, str]) -> bytes:
    """The patch in a form that can be applied: masked context lines are read from the commit, and `given` secrets are
    filled in.

    Args:
        folder: the checked-out commit.
    """
    if MARK.search(patch.decode("utf-8", "surrogateescape")) is None:
        return patch
    texts = []
    for lines in _sections(patch.decode("utf-8", "surrogateescape")):
        before = _committed(folder, lines)
        for number, line in _numbered(lines):
            if line[:1] in ("-", " ") and number is not None and MARK.search(line) and number < len(before):
                line = line[0] + before[number]
            elif line.startswith("+") and number is not None:
                line = MARK.sub(lambda mark: given.get(mark[1], mark[0]), line)
            texts.append(line)
    return "".join(texts).encode("utf-8", "surrogateescape")


def masked_lines(patch: bytes) -> list[str]:
    """The names of the secrets that were masked in lines that a patch adds."""
    names: dict[str, None] = {}
    for lines in _sections(patch.decode("utf-8", "surrogateescape")):
        for number, line in _numbered(lines):
            if number is not None and line.startswith("+"):
                names.update(dict.fromkeys(MARK.findall(line)))
    return list(names)


def _sections(text: str) -> Iterator[list[str]]:
    """The lines of each file's section, with their line ends. Lines before the first file are a section too."""
    lines: list[str] = []
    for line in _lines(text):
        if line.startswith("diff --git ") and lines:
            yield lines
            lines = []
        lines.append(line)
    if lines:
        yield lines


def _lines(text: str) -> list[str]:
    """Lines as git counts them: only a newline ends a line."""
    return [f"{line}\n" for line in text.split("\n")[:-1]] + ([last] if (last := text.rpartition("\n")[2]) else [])


def _head(lines: list[str]) -> list[str]:
    end = next((at for at, line in enumerate(lines) if line.startswith(("@@ ", "GIT binary patch"))), len(lines))
    return lines[:end]


def _paths(lines: list[str]) -> list[str]:
    """Every path in a file's section, the new path last; empty if it is not the section of a file."""
    if not lines or not lines[0].startswith("diff --git "):
        return []
    found = []
    header = _HEADER.match(lines[0].rstrip("\n"))
    if header is not None:
        found += [_unquoted(path) for path in header.groups() if path]
    for line in _head(lines):
        if line.startswith(_NAMING):
            path = next(line.removeprefix(start) for start in _NAMING if line.startswith(start)).rstrip("\n\t")
            path = _unquoted(path)
            if path != "/dev/null":
                found.append(path[2:] if line.startswith(("--- ", "+++ ")) and path[:2] in ("a/", "b/") else path)
    return found or [_unquoted(lines[0].rstrip("\n").rpartition(" b/")[2])]


def _unquoted(path: str) -> str:
    """A path without the quotes and octal escapes that git writes with `core.quotePath`."""
    if not (path.startswith('"') and path.endswith('"')) and "\\" not in path:
        return path
    plain = path.removeprefix('"').removesuffix('"')
    return re.sub(r"\\([0-7]{3}|.)", lambda found: chr(int(found[1], 8)) if len(found[1]) == 3 else found[1], plain)


def _holds_secrets(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    if any(fnmatchcase(name, pattern) for pattern in _EXAMPLES):
        return False
    return any(fnmatchcase(name, pattern) for pattern in _SECRET_FILES)


def _masked(lines: list[str], path: str) -> str:
    file = PurePosixPath(path)
    code = file.suffix.lower() not in _UNQUOTED or (not file.suffix and file.name.lower() == "makefile")
    prefix = f"{file.name[-40:]}:" if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", file.name[-40:]) else "file:"
    # Secrets in added lines are named separately, because only those have to be supplied again.
    added, context = Masker(prefix), Masker(prefix)
    masked: list[str] = []
    inside_key = False
    for number, line in _numbered(lines):
        if number is None:
            masked.append(line)
            continue
        body, masker = line[1:], added if line.startswith("+") else context
        if "PRIVATE KEY" in body and "-----BEGIN" in body and "-----END" not in body:
            inside_key = True
        elif inside_key:
            if "-----END" in body:
                inside_key = False
            elif stripped := body.strip(" \t\r\n\"'#,\\"):
                masked.append(line[0] + body.replace(stripped, masker.mask("private-key", stripped)))
                continue
        elif len(body) > 5:
            body = masker.text(body, code=code)
        masked.append(line[0] + body)
    return "".join(masked)


def _numbered(lines: list[str]) -> Iterator[tuple[int | None, str]]:
    """Each line with its line number, counted from 0: in the new file for added lines, else in the old file. None
    outside of hunks."""
    old = new = 0
    left_old = left_new = 0
    for line in lines:
        if left_old <= 0 and left_new <= 0:
            hunk = _HUNK.match(line)
            if hunk is not None:
                old, new = int(hunk[1]) - 1, int(hunk[3]) - 1
                left_old, left_new = (int(1 if count is None else count) for count in (hunk[2], hunk[4]))
            yield None, line
            continue
        match line[:1]:
            case "+":
                yield new, line
                new, left_new = new + 1, left_new - 1
            case "-":
                yield old, line
                old, left_old = old + 1, left_old - 1
            case "\\":
                yield None, line
            case _:
                yield old, line
                old, new, left_old, left_new = old + 1, new + 1, left_old - 1, left_new - 1


def _committed(folder: Path, lines: list[str]) -> list[str]:
    """The lines that the commit has in the file of a section."""
    for line in _head(lines):
        if not line.startswith("--- "):
            continue
        file = folder / _unquoted(line.removeprefix("--- ").rstrip("\n\t")).removeprefix("a/")
        if file.is_file() and not file.is_symlink() and file.resolve().is_relative_to(folder.resolve()):
            return _lines(file.read_bytes().decode("utf-8", "surrogateescape"))
    return []


def _refused(reason: str) -> UsageError:
    return UsageError(f"The changes of the run are not applied: {reason}.", help="Show them: everloop runs show RUN")
