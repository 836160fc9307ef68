"""The module in which a constant was first bound: `from helpers import LIMIT` leads to `helpers`."""

from __future__ import annotations

import ast
import importlib.util
import sys
from typing import TYPE_CHECKING

from everloop.pipeline.code.code_origin import origin_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.pipeline.code.source_files import SourceFile

_LONGEST_CHAIN = 20


def find_constant_origin(
    module: str, name: str, source: SourceFile | None, read_source: Callable[[str], SourceFile | None]
) -> tuple[str, SourceFile | None]:
    """Follow `from … import` statements to the project module that binds `name`.

    Args:
        source: the parsed file of `module`.
        read_source: gives the parsed file at a path.
    """
    for _ in range(_LONGEST_CHAIN):
        if source is None:
            return module, source
        statements = source.bindings.get(name)
        found = statements[-1] if statements else _find_star_import(module, name, source)
        if not isinstance(found, ast.ImportFrom):
            return module, source
        package = getattr(sys.modules.get(module), "__package__", None) or ""
        target = found.module or ""
        if found.level:
            target = importlib.util.resolve_name("." * found.level + target, package)
        other = sys.modules.get(target)
        filename = getattr(other, "__file__", None)
        if other is None or filename is None or origin_of(target, filename) != "project":
            return module, source
        aliases = {alias.asname or alias.name: alias.name for alias in found.names}
        name = aliases.get(name, name)
        module, source = target, read_source(filename)
    return module, source


def _find_star_import(module: str, name: str, source: SourceFile) -> ast.ImportFrom | None:
    package = getattr(sys.modules.get(module), "__package__", None) or ""
    for node in source.star_imports:
        target = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        if hasattr(sys.modules.get(target), name):
            return node
    return None
