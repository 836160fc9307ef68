"""Functions that travel: what prepares the rows for a model goes with the model, so the two cannot differ.

A package that holds a function by its name would need the project's files wherever it answers, and would take
whatever stands there by then. A transformer is held by what it does: the function, and every function, class and
constant of the project that it reaches, as they were when the model was packaged.
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
    """An ordinary function from a table to a table; called, it is that function.

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
        # Estimators are cloned for every fold; a function has no state to copy.
        return self

    def __reduce__(self) -> Any:
        return _unpacked, (_packed(self.function),)


def transformer(function: Callable[..., Any]) -> Transformer:
    """Make a function travel with the models that it prepares for; with scikit-learn, pandas or Polars inside."""
    return Transformer(function)


def _packed(function: Callable[..., Any]) -> bytes:
    import cloudpickle

    own = list(own_modules(function))
    before = cloudpickle.list_registry_pickle_by_value()
    fresh = [module for module in own if module.__name__ not in before]
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

    # Only ever reached from within bytes of code that are trusted already: a signed package, or the own process's.
    return Transformer(cloudpickle.loads(packed))


def own_modules(function: Any) -> Iterator[ModuleType]:
    """The modules of the project that the function is from: those whose files lie beside its own, or below."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return
    depth = module.__name__.count(".") + (Path(file).name == "__init__.py")
    folder = Path(file).resolve().parents[depth]
    for other in list(sys.modules.values()):
        place = getattr(other, "__file__", None)
        if not isinstance(place, str) or other.__name__ == "__main__":
            continue
        path = Path(place).resolve()
        if path.is_relative_to(folder) and not {"site-packages", "dist-packages"} & set(path.relative_to(folder).parts):
            yield other
