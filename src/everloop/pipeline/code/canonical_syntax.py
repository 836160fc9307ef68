"""Syntax trees in one canonical form.

The canonical form leaves out everything that cannot change what the code does: comments, layout, docstrings, `pass`,
annotations of functions and local variables. Empty fields are left out too, so that a newer Python, whose grammar has
more optional fields, gives the same text.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SKIPPED_FIELDS = frozenset({"ctx", "type_comment", "kind", "lineno", "col_offset", "end_lineno", "end_col_offset"})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def write_syntax(
    node: ast.AST,
    *,
    entry: bool = False,
    skip_decorator: Callable[[ast.expr], bool] = lambda _: False,
) -> str:
    """Write a tree in one canonical form.

    Args:
        node: a definition, a statement or a module.
        entry: whether this is the function of a step. Its annotations are kept, because they choose the type of its
            inputs. Its defaults are left out, because their values count as parameters.
        skip_decorator: returns True for decorators to leave out.
    """
    written: list[str] = []
    _write(node, written, entry=entry, in_class=False, skip=skip_decorator)
    return "".join(written)


def _write(node: ast.AST, out: list[str], *, entry: bool, in_class: bool, skip: Callable[[ast.expr], bool]) -> None:
    if isinstance(node, ast.Constant):
        out.append(write_constant(node.value))
        return
    if isinstance(node, ast.AnnAssign) and not in_class:
        if node.value is not None:
            _write(ast.Assign([node.target], node.value), out, entry=False, in_class=False, skip=skip)
        return
    is_class = isinstance(node, ast.ClassDef)
    is_function = isinstance(node, _FUNCTIONS)
    out.append(type(node).__name__)
    out.append("(")
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or value == [] or name in _SKIPPED_FIELDS:
            continue
        if name in ("returns", "annotation") and not entry and not isinstance(node, ast.AnnAssign):
            continue
        if name == "type_params" and not is_class:
            continue
        if name in ("defaults", "kw_defaults") and entry:
            continue
        if name == "decorator_list":
            value = [decorator for decorator in value if not skip(decorator)]
        elif name in ("body", "orelse", "finalbody") and isinstance(value, list):
            value = [statement for statement in value if not _has_no_effect(statement)]
        if value == []:
            continue
        out.append(f"{name}=")
        # `entry` applies to the function's signature, not to functions that are defined inside it.
        entry_below = entry and not (is_function and name == "body")
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, ast.AST):
                _write(item, out, entry=entry_below, in_class=is_class and name == "body", skip=skip)
            else:
                out.append(repr(item))
            out.append(",")
    out.append(")")


def _has_no_effect(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring, a bare string, `...` or `pass`."""
    if isinstance(statement, ast.Pass):
        return True
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and (isinstance(statement.value.value, str) or statement.value.value is ...)
    )


def write_constant(value: object) -> str:
    """A constant as text, the same in every process."""
    # `repr` of a frozenset follows the hash order, which differs between processes.
    if isinstance(value, frozenset):
        return f"frozenset{sorted(map(repr, value))}"
    return f"{type(value).__name__} {value!r}"
