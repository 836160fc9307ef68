"""Parsed source files, and the definition in them that a code object was compiled from."""

from __future__ import annotations

import ast
import linecache
import marshal
import struct
from dataclasses import dataclass, field
from functools import cached_property
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, TypeAlias

from everloop.pipeline.code.canonical_syntax import write_constant
from everloop.pipeline.code.name_usage import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
Stamp: TypeAlias = tuple[int, ...]
"""Times in nanoseconds, size in bytes and inode of a file. A file whose stamp has not changed is not read again."""

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class SourceFile:
    """One parsed source file."""

    filename: str
    tree: ast.Module
    _definitions: dict[str, list[Definition]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for qualified, node in _walk_definitions(self.tree, ""):
            self._definitions.setdefault(qualified, []).append(node)

    def find_class(self, qualified: str) -> ast.ClassDef | None:
        """The last class definition of that qualified name."""
        found = [node for node in self._definitions.get(qualified, ()) if isinstance(node, ast.ClassDef)]
        return found[-1] if found else None

    def find_function(self, code: CodeType) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None:
        """The definition that `code` was compiled from, or None if the file has no such definition any more.

        The file may have been edited since it was imported. Its lines may have moved, but the instructions must be
        the same: otherwise its text is not the code that would run.
        """
        same = [line for line, other in self._compiled.get(code.co_qualname, ()) if same_instructions(code, other)]
        if not same:
            return None
        line = code.co_firstlineno if code.co_firstlineno in same else same[-1]
        found = [
            node
            for node in self._definitions.get(code.co_qualname, ())
            if not isinstance(node, ast.ClassDef) and first_line(node) == line
        ]
        if len(found) > 1:
            found = [node for node in found if _covers(node, code)] or found
        return found[-1] if found else None

    @cached_property
    def bindings(self) -> dict[str, list[ast.stmt]]:
        """Name to the top-level statements that bind it."""
        bound: dict[str, list[ast.stmt]] = {}
        for statement in self.tree.body:
            for name in Scope.of([statement]).names:
                bound.setdefault(name, []).append(statement)
        return bound

    @cached_property
    def star_imports(self) -> list[ast.ImportFrom]:
        return [
            node
            for node in self.tree.body
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
        ]

    @cached_property
    def guarded_imports(self) -> dict[str, list[tuple[str, str | None]]]:
        """The imports under `if TYPE_CHECKING:`, name to module and attribute."""
        found: dict[str, list[tuple[str, str | None]]] = {}
        for guard in self.tree.body:
            if not isinstance(guard, ast.If) or "TYPE_CHECKING" not in ast.dump(guard.test):
                continue
            for node in guard.body:
                if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    for alias in node.names:
                        found.setdefault(alias.asname or alias.name, []).append((node.module, alias.name))
                elif isinstance(node, ast.Import):
                    for alias in node.names:
                        module = alias.name if alias.asname else alias.name.partition(".")[0]
                        found.setdefault(alias.asname or module, []).append((module, None))
        return found

    @cached_property
    def compiled(self) -> CodeType:
        """The code of the whole module, compiled from its text."""
        return compile(self.tree, self.filename, "exec", dont_inherit=True)

    @cached_property
    def _compiled(self) -> dict[str, list[tuple[int, CodeType]]]:
        found: dict[str, list[tuple[int, CodeType]]] = {}
        waiting = [self.compiled]
        while waiting:
            code = waiting.pop()
            for constant in code.co_consts:
                if isinstance(constant, CodeType):
                    found.setdefault(constant.co_qualname, []).append((constant.co_firstlineno, constant))
                    waiting.append(constant)
        return found


_FILES: dict[str, tuple[Stamp, SourceFile | None]] = {}
_IMPORTED: dict[str, tuple[bytes, SourceFile | None]] = {}
"""File name to the text that its module was compiled from at import, and that text parsed."""


def remember_imported(filename: str, text: bytes) -> None:
    """Remember the text that a module was compiled from, since its file may change later."""
    _IMPORTED[filename] = (text, None)


def find_bytecode(module: ModuleType) -> str | None:
    """The instructions of a module that runs from a stale compiled file which Python took for a current one.

    None if the module runs what its file says, or was not imported from a compiled file.
    """
    spec = module.__spec__
    if spec is None or type(spec.loader) is not SourceFileLoader or not spec.cached or not spec.origin:
        return None
    try:
        data = Path(spec.cached).read_bytes()
        stat = Path(spec.origin).stat()
        header = struct.unpack("<III", data[4:16])
        if header != (0, int(stat.st_mtime) & 0xFFFFFFFF, stat.st_size & 0xFFFFFFFF):
            return None
        running = marshal.loads(data[16:])  # noqa: S302 - what Python itself has loaded
    except (OSError, ValueError, EOFError, TypeError, struct.error):
        return None  # no compiled file, or one that Python cannot use either
    source = find_source(spec.origin)
    if source is None or not isinstance(running, CodeType) or same_instructions(running, source.compiled):
        return None
    return write_instructions(running)


def stamp_of(filename: str) -> Stamp:
    """A stamp that differs once a file has changed. For text that is not a file (a notebook's cell), its size."""
    try:
        stat = Path(filename).stat()
    except OSError:
        return (-1, sum(map(len, linecache.getlines(filename))))
    # The time of the last status change counts as well: tools that copy files restore the time of modification.
    return (stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns, stat.st_ino)


def find_source(filename: str) -> SourceFile | None:
    """The text that a module was imported from, or else its file, parsed. Parsed again only after its stamp changes.

    None if there is no source, or it does not parse.
    """
    imported = _IMPORTED.get(filename)
    if imported is not None:
        text, parsed = imported
        if parsed is None:
            parsed = SourceFile(filename, ast.parse(text, filename))
            _IMPORTED[filename] = (text, parsed)
        return parsed
    stamp = stamp_of(filename)
    cached = _FILES.get(filename)
    if cached is not None and cached[0] == stamp:
        return cached[1]
    try:
        content: bytes | str = Path(filename).read_bytes() if stamp[0] >= 0 else "".join(linecache.getlines(filename))
        source = SourceFile(filename, ast.parse(content, filename)) if content else None
    except (OSError, SyntaxError, ValueError):
        # Not Python source, or broken by an edit: the caller uses the compiled code instead.
        source = None
    _FILES[filename] = (stamp, source)
    return source


def first_line(node: Definition) -> int:
    """The line that Python counts as the first of a definition: that of its first decorator."""
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def same_instructions(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects do the same, regardless of their position in the file."""
    return (
        one.co_code == other.co_code
        and one.co_names == other.co_names
        and one.co_varnames == other.co_varnames
        and one.co_freevars == other.co_freevars
        and one.co_cellvars == other.co_cellvars
        and one.co_flags == other.co_flags
        and one.co_argcount == other.co_argcount
        and one.co_kwonlyargcount == other.co_kwonlyargcount
        and one.co_posonlyargcount == other.co_posonlyargcount
        and len(one.co_consts) == len(other.co_consts)
        and all(map(_same_constant, one.co_consts, other.co_consts))
    )


def _same_constant(one: object, other: object) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return same_instructions(one, other)
    # `repr` of a frozenset has another order in every process, so constants are compared in their written form.
    return type(one) is type(other) and write_constant(one) == write_constant(other)


def write_instructions(code: CodeType) -> str:
    """A compiled function as text, for code without source. The text differs between Python versions."""
    constants = [
        write_instructions(value) if isinstance(value, CodeType) else write_constant(value) for value in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"


def _walk_definitions(node: ast.AST, inside: str) -> Iterator[tuple[str, Definition]]:
    """Every definition below `node` with its qualified name, as `co_qualname` spells it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            name = f"{inside}<lambda>" if isinstance(child, ast.Lambda) else f"{inside}{child.name}"
            yield name, child
            below = f"{name}." if isinstance(child, ast.ClassDef) else f"{name}.<locals>."
            yield from _walk_definitions(child, below)
        elif isinstance(child, _COMPREHENSIONS):
            kind = {ast.ListComp: "listcomp", ast.SetComp: "setcomp", ast.DictComp: "dictcomp"}.get(
                type(child), "genexpr"
            )
            yield from _walk_definitions(child, f"{inside}<{kind}>.<locals>.")
        else:
            yield from _walk_definitions(child, inside)


def _covers(node: ast.AST, code: CodeType) -> bool:
    """Whether every instruction of `code` lies in the body of a lambda. This tells apart two lambdas on one line."""
    body = node.body if isinstance(node, ast.Lambda) else node
    if not isinstance(body, ast.expr):
        return True
    first = (body.lineno, body.col_offset)
    last = (body.end_lineno or body.lineno, body.end_col_offset or body.col_offset)
    for line, end_line, column, end_column in code.co_positions():
        # The prologue has the position of the lambda itself, or none.
        if line is None or end_line is None or column is None or end_column is None or (column, end_column) == (0, 0):
            continue
        if isinstance(node, ast.Lambda) and (line, column) == (node.lineno, node.col_offset):
            continue
        if (line, column) < first or (end_line, end_column) > last:
            return False
    return True
