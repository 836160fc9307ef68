"""The names that code reads from outside itself: the starting points for tracing what it depends on."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# fmt: off
_CHANGING = frozenset({
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove",
    "reverse", "setdefault", "sort", "update",
})
# fmt: on


@dataclass(frozen=True, slots=True)
class NameUsage:
    """A dotted name that code reads and does not bind itself.

    `module` is set when the first part is bound by an import inside the function: then `names` is relative to
    that module, and `level` counts the dots of a relative import.
    """

    names: tuple[str, ...]
    module: str | None = None
    level: int = 0
    changes: bool = False
    """Whether the code also writes to it: `NAME[key] = …`, `NAME.append(…)`, `global NAME`."""


@dataclass
class Scope:
    """The names that one scope binds. A name that is bound by an import maps to what is imported."""

    names: dict[str, NameUsage | None] = field(default_factory=dict)
    is_class: bool = False

    @classmethod
    def of(cls, body: Iterable[ast.AST], arguments: ast.arguments | None = None, *, is_class: bool = False) -> Scope:
        scope = cls(is_class=is_class)
        if arguments is not None:
            parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            parameters += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
            scope.names.update(dict.fromkeys(parameter.arg for parameter in parameters))
        bound_outside: set[str] = set()
        waiting = list(body)
        while waiting:
            node = waiting.pop()
            scope._bind(node, bound_outside)
            if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
                continue
            if isinstance(node, _COMPREHENSIONS):
                # Only an assignment expression binds a name outside of its comprehension.
                waiting += [inner.target for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
                continue
            waiting.extend(ast.iter_child_nodes(node))
        for name in bound_outside:
            scope.names.pop(name, None)
        return scope

    def _bind(self, node: ast.AST, bound_outside: set[str]) -> None:
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                self.names.setdefault(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                self.names[name] = None
            case ast.Import(names=aliases):
                for alias in aliases:
                    top = alias.name.partition(".")[0]
                    self.names[alias.asname or top] = NameUsage((), alias.name if alias.asname else top)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                for alias in aliases:
                    self.names[alias.asname or alias.name] = NameUsage((alias.name,), module or "", level)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                self.names.setdefault(name)
            case ast.MatchMapping(rest=str(name)):
                self.names.setdefault(name)
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                bound_outside.update(names)
            case _:
                pass


def read_names(
    node: ast.AST, *, entry: bool = False, skip_decorator: Callable[[ast.expr], bool] = lambda _: False
) -> list[NameUsage]:
    """The dotted names that code reads from outside itself, in order of first appearance."""
    found: dict[NameUsage, None] = {}
    _Reader(found, skip_decorator).read(node, [], entry=entry)
    return list(found)


@dataclass
class _Reader:
    found: dict[NameUsage, None]
    skip: Callable[[ast.expr], bool]

    def read(self, node: ast.AST, scopes: list[Scope], *, entry: bool = False) -> None:
        if isinstance(node, ast.Name | ast.Attribute):
            self._read_dotted(node, scopes)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            if isinstance(node.value, ast.Name | ast.Attribute):
                self._read_dotted(node.value, scopes, changes=True)
            else:
                self.read(node.value, scopes)
            self.read(node.slice, scopes)
        elif isinstance(node, ast.Global):
            for name in node.names:
                self.found[NameUsage((name,), changes=True)] = None
        elif isinstance(node, _FUNCTIONS):
            self._read_function(node, scopes, entry=entry)
        elif isinstance(node, ast.ClassDef):
            outer = [*(item for item in node.decorator_list if not self.skip(item)), *node.bases, *node.keywords]
            self._read_all(outer, scopes)
            self._read_all(node.body, [*scopes, Scope.of(node.body, is_class=True)])
        elif isinstance(node, _COMPREHENSIONS):
            # Python evaluates the first iterable outside of the comprehension's scope, the others inside.
            self.read(node.generators[0].iter, scopes)
            inner = [*scopes, Scope.of([generator.target for generator in node.generators])]
            for number, generator in enumerate(node.generators):
                self._read_all([*([generator.iter] if number else []), *generator.ifs], inner)
            results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            self._read_all(results, inner)
        elif isinstance(node, ast.AnnAssign):
            parts = [node.target, *([node.value] if node.value else [])]
            if scopes and scopes[-1].is_class:
                parts.append(node.annotation)
            self._read_all(parts, scopes)
        else:
            self._read_all(ast.iter_child_nodes(node), scopes)

    def _read_all(self, nodes: Iterable[ast.AST], scopes: list[Scope]) -> None:
        for node in nodes:
            self.read(node, scopes)

    def _read_function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, scopes: list[Scope], *, entry: bool
    ) -> None:
        arguments = node.args
        if not entry:
            self._read_all([*arguments.defaults, *(item for item in arguments.kw_defaults if item)], scopes)
        if isinstance(node, ast.Lambda):
            self.read(node.body, [*scopes, Scope.of([node.body], arguments)])
            return
        self._read_all([item for item in node.decorator_list if not self.skip(item)], scopes)
        if entry:
            parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            annotations = [item.annotation for item in parameters if item.annotation]
            self._read_all([*annotations, *([node.returns] if node.returns else [])], scopes)
        self._read_all(node.body, [*scopes, Scope.of(node.body, arguments)])

    def _read_dotted(self, node: ast.Name | ast.Attribute, scopes: list[Scope], *, changes: bool = False) -> None:
        names: list[str] = []
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            names.append(root.attr)
            root = root.value
        if not isinstance(root, ast.Name):
            self.read(root, scopes)
            return
        if not isinstance(root.ctx, ast.Load):
            return
        names.append(root.id)
        names.reverse()
        if len(names) > 1 and names[-1] in _CHANGING:
            names, changes = names[:-1], True
        for depth, scope in enumerate(reversed(scopes)):
            if scope.is_class and depth:
                continue
            if root.id in scope.names:
                imported = scope.names[root.id]
                if imported is not None:
                    joined = (*imported.names, *names[1:])
                    self.found[NameUsage(joined, imported.module, imported.level, changes)] = None
                return
        self.found[NameUsage(tuple(names), changes=changes)] = None
