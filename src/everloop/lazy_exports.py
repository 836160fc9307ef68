"""Public names of a package that are imported on first use.

Importing everloop must stay cheap (the standard library only), but names such as `everloop.data.read` must work. So
a package's `__init__` lists its public names twice: under `TYPE_CHECKING` for type checkers, and in a call of
`lazy_exports`:

    __getattr__, __dir__, __all__ = lazy_exports(__name__, {"clock": ["Clock", "new_id"]})
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def lazy_exports(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for a package (PEP 562).

    Args:
        package: the package's `__name__`.
        modules: the public names that each module defines, by the module's name relative to the package.
    """
    module_of = {name: module for module, names in modules.items() for name in names}
    public = sorted(module_of)

    def __getattr__(name: str) -> Any:  # noqa: N807
        module = module_of.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module}"), name)
        # The next access finds the name in the package itself.
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*vars(sys.modules[package]), *public})

    return __getattr__, __dir__, public
