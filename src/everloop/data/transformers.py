"""Transformers: preprocessing functions that are packaged with their model, so that the two cannot diverge.

If a package referred to a function by name, it would need the project's files wherever it serves, and would use
whatever version it found there. A transformer is packaged as code instead: the function, and every function, class and
constant of the project that it uses, as they were when the model was packaged.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType


class Transformer:
    """A function from a table to a table that is packaged with its model. Calling it calls the function.

    @el.transformer
    def ratios(table):
        return table.assign(ratio=table["a"] / table["b"])

    model = make_pipeline(FunctionTransformer(ratios), LogisticRegression())
    """

    __name__: str

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **options)

    def __repr__(self) -> str:
        return f"<transformer {getattr(self.function, '__qualname__', self.function)}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Transformer:
        # Estimators are cloned for every fold. A function has no state to copy.
        return self

    def __reduce__(self) -> Any:
        return _unpacked, (_packed(self.function),)


def transformer(function: Callable[..., Any]) -> Transformer:
    """Package a function with the models that use it. The function may use scikit-learn, pandas or Polars."""
    return Transformer(function)


def _packed(function: Callable[..., Any]) -> bytes:
    import cloudpickle

    before = cloudpickle.list_registry_pickle_by_value()
    fresh = [module for module in project_modules(function) if module.__name__ not in before]
    for module in fresh:
        cloudpickle.register_pickle_by_value(module)
    try:
        packed: bytes = cloudpickle.dumps(function)
        return packed
    finally:
        for module in fresh:
            cloudpickle.unregister_pickle_by_value(module)


def _unpacked(packed: bytes) -> Transformer:
    import cloudpickle

    # Only reached from bytes of code that are trusted already: a signed package, or data of the same process.
    return Transformer(cloudpickle.loads(packed))


def project_modules(function: Any) -> Iterator[ModuleType]:
    """The modules of the function's project: those whose files are in the same folder as its package, or below."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return
    depth = module.__name__.count(".") + (Path(file).name == "__init__.py")
    folder = Path(file).resolve().parents[depth]
    # Thousands of modules are in a few hundred folders, and resolving a path reads each part of it from the disk.
    resolved = functools.cache(Path.resolve)
    for other in list(sys.modules.values()):
        other_file = getattr(other, "__file__", None)
        if not isinstance(other_file, str) or other.__name__ == "__main__":
            continue
        path = Path(other_file)
        path = path.resolve() if path.is_symlink() else resolved(path.parent) / path.name
        if path.is_relative_to(folder) and not {"site-packages", "dist-packages"} & set(path.relative_to(folder).parts):
            yield other
