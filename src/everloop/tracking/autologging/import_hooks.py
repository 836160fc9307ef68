"""Import hooks: patch a library when it is imported, without importing it."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from everloop.tracking.autologging.sessions import warn_once

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from everloop.tracking.autologging.attribute_patches import Patches


def when_imported(name: str, patcher: str, patches: Patches) -> None:
    """Call `patch(module, patches)` of the module `patcher` when `name` is imported; now, if it is already imported."""
    module = sys.modules.get(name)
    if module is not None and not _is_loading(module):
        _apply(module, patcher, patches)
        return
    _finder.waiting[name] = (patcher, patches)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def forget() -> None:
    """Cancel all hooks that have not been called yet."""
    _finder.waiting.clear()
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders find a module, and wraps its loader so that `loaded` is called afterwards."""

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[str, Patches]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        for finder in sys.meta_path:
            found = None if finder is self else getattr(finder, "find_spec", lambda *_: None)(fullname, path, target)
            if found is None:
                continue
            if found.loader is not None and hasattr(found.loader, "exec_module"):
                _wrap_loader(found.loader)
            spec: ModuleSpec = found
            return spec
        return None

    def loaded(self, module: ModuleType) -> None:
        waiting = self.waiting.pop(module.__name__, None)
        if waiting is not None:
            _apply(module, *waiting)


_finder = _Finder()


def _wrap_loader(loader: Any) -> None:
    # The loader is changed, not replaced: other tools inspect a module's loader.
    original = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        loader.exec_module = original
        original(module)
        _finder.loaded(module)

    loader.exec_module = exec_module


def _is_loading(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _apply(module: ModuleType, patcher: str, patches: Patches) -> None:
    try:
        import_module(patcher).patch(module, patches)
    except Exception as error:
        # The patch does not fit this version of the library. The library itself must keep working.
        warn_once(f"Autologging does not support this version of {module.__name__}: {error!r}")
