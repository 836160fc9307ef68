"""Python objects as bytes, with the code of their user's own modules in them.

A class or a function of a module that lies beside the user's script is named, not kept, by a pickle, and is not there
where the model serves. So those modules travel inside. Installed libraries are named: the package's lock has them.
"""

from __future__ import annotations

import pickletools
import sys
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from everloop.data.transformers import own_modules
from everloop.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType


def dump_code(value: Any) -> bytes:
    """An object in cloudpickle's format, whole.

    Raises:
        UsageError: it cannot be pickled; the message names the module of the user's that is the reason, if one is.
    """
    import cloudpickle

    try:
        blob: bytes = cloudpickle.dumps(value)
    except Exception as error:  # pickling raises whatever the object's own methods raise
        raise _refusal(value, error, ()) from error
    own = _modules_of(blob)
    if not own:
        return blob
    with ExitStack() as stack:
        known = cloudpickle.list_registry_pickle_by_value()
        for module in own:
            if module.__name__ not in known:
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
        try:
            whole: bytes = cloudpickle.dumps(value)
        except Exception as error:
            raise _refusal(value, error, own) from error
    return whole


def _modules_of(blob: bytes) -> list[ModuleType]:
    """The user's own modules that a pickle names, and those that lie beside them."""
    found: dict[str, ModuleType] = {}
    for operation, argument, _ in pickletools.genops(blob):
        if not isinstance(argument, str):
            continue
        name = argument.partition(" ")[0] if operation.name == "GLOBAL" else argument
        if name not in sys.modules or name.partition(".")[0] in _NOT_OWN:
            continue
        path = getattr(sys.modules[name], "__file__", None) or ""
        if not path or {"site-packages", "dist-packages"} & set(path.split("/")) or path.startswith(_LIBRARY):
            continue
        for module in (sys.modules[name], *own_modules(SimpleNamespace(__module__=name))):
            if module.__name__.partition(".")[0] not in _NOT_OWN:
                found[module.__name__] = module
    return list(found.values())


_NOT_OWN = frozenset({"everloop", "__main__", *sys.stdlib_module_names})
_LIBRARY = f"{sys.base_prefix}/lib/python"


def _refusal(value: Any, error: Exception, own: Any) -> UsageError:
    modules = f" with the code of {', '.join(module.__name__ for module in own)}" if own else ""
    return UsageError(
        f"The {type(value).__name__} cannot be packaged{modules}: {type(error).__name__}: {error}",
        help="Move what cannot be pickled (open files, locks, connections) out of the model and out of its modules, "
        "or install the module as a package where the model is served.",
    )
