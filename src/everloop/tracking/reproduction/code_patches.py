"""Patches that a run keeps: masked when they are taken, and checked and completed before they are applied.

A patch is what `git diff --binary` writes. Files that are made to hold secrets (`.env`, private keys, `.netrc`, …) are
left out of it and named in its first lines; in all others, lines keep their number and only the secret's characters are
replaced. Lines that the commit has as well must match it, so those that were masked are read from the commit again.
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
_LOOSE = (".cfg", ".conf", ".config", ".ini", ".properties", ".sh", ".bash", ".yaml", ".yml", ".txt", ".md", ".mk", "")
"""Endings of files in which `name=value` and `name: value` need no quotes."""
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
    """The patch without secrets."""
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
    """The files that a patch changes.

    Args:
        links: it may make symbolic links, as a patch of this machine's own may.

    Raises:
        UsageError: it changes something outside of its folder or in `.git`, or makes a link or a submodule.
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
                raise _refused(f"it makes '{paths[-1]}' something else than a file (mode {mode[1]})")
        body = lines[len(_head(lines)) :]
        added, removed = (sum(line.startswith(sign) for line in body) for sign in "+-")
        found.append(PatchedFile(paths[-1], added, removed))
    return found


def completed(patch: bytes, folder: Path, given: Mapping[str, str]) -> bytes:
    """The patch as it can be applied: masked lines of the commit as the commit has them, `given` secrets put back.

    Args:
        folder: the commit, checked out.
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
    """The names of what was masked in lines that a patch adds."""
    names: dict[str, None] = {}
    for lines in _sections(patch.decode("utf-8", "surrogateescape")):
        for number, line in _numbered(lines):
            if number is not None and line.startswith("+"):
                names.update(dict.fromkeys(MARK.findall(line)))
    return list(names)


def _sections(text: str) -> Iterator[list[str]]:
    """The lines of each file's part, their ends kept; what stands before the first one is a part of its own."""
    lines: list[str] = []
    for line in _lines(text):
        if line.startswith("diff --git ") and lines:
            yield lines
            lines = []
        lines.append(line)
    if lines:
        yield lines


def _lines(text: str) -> list[str]:
    """Lines as git counts them: only a newline ends one."""
    return [f"{line}\n" for line in text.split("\n")[:-1]] + ([last] if (last := text.rpartition("\n")[2]) else [])


def _head(lines: list[str]) -> list[str]:
    end = next((at for at, line in enumerate(lines) if line.startswith(("@@ ", "GIT binary patch"))), len(lines))
    return lines[:end]


def _paths(lines: list[str]) -> list[str]:
    """Every path that a file's part names, the new one last; empty where it is no file's part."""
    if not lines or not lines[0].startswith("diff --git "):
        return []
    found = []
    named = _HEADER.match(lines[0].rstrip("\n"))
    if named is not None:
        found += [_unquoted(path) for path in named.groups() if path]
    for line in _head(lines):
        if line.startswith(_NAMING):
            path = next(line.removeprefix(start) for start in _NAMING if line.startswith(start)).rstrip("\n\t")
            path = _unquoted(path)
            if path != "/dev/null":
                found.append(path[2:] if line.startswith(("--- ", "+++ ")) and path[:2] in ("a/", "b/") else path)
    return found or [_unquoted(lines[0].rstrip("\n").rpartition(" b/")[2])]


def _unquoted(path: str) -> str:
    """A path as git writes it with `core.quotePath`: in quotes, with octal escapes."""
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
    code = file.suffix.lower() not in _LOOSE or (not file.suffix and file.name.lower() == "makefile")
    prefix = f"{file.name[-40:]}:" if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", file.name[-40:]) else "file:"
    # What is added has names of its own: only that has to be given again.
    ours, theirs = Masker(prefix), Masker(prefix)
    found: list[str] = []
    inside_key = False
    for number, line in _numbered(lines):
        if number is None:
            found.append(line)
            continue
        body, masker = line[1:], ours if line.startswith("+") else theirs
        if "PRIVATE KEY" in body and "-----BEGIN" in body and "-----END" not in body:
            inside_key = True
        elif inside_key:
            if "-----END" in body:
                inside_key = False
            elif stripped := body.strip(" \t\r\n\"'#,\\"):
                found.append(line[0] + body.replace(stripped, masker.mask("private-key", stripped)))
                continue
        elif len(body) > 5:
            body = masker.text(body, code=code)
        found.append(line[0] + body)
    return "".join(found)


def _numbered(lines: list[str]) -> Iterator[tuple[int | None, str]]:
    """Each line with its place in the file, counted from 0: the old file, of added lines the new; None outside of
    hunks."""
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
    """The lines of the file that a part changes, as the commit has it."""
    for line in _head(lines):
        if not line.startswith("--- "):
            continue
        file = folder / _unquoted(line.removeprefix("--- ").rstrip("\n\t")).removeprefix("a/")
        if file.is_file() and not file.is_symlink() and file.resolve().is_relative_to(folder.resolve()):
            return _lines(file.read_bytes().decode("utf-8", "surrogateescape"))
    return []


def _refused(why: str) -> UsageError:
    return UsageError(f"The changes of the run are not applied: {why}.", help="Look at them: everloop runs show RUN")
