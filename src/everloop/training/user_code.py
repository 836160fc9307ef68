"""Pickle Python objects together with the code of the user's own modules.

A pickle only names classes and functions of modules beside the user's script, and those modules are missing where the
model is served. So their code is included. Installed libraries are only named; the package's lock lists them.
"""

from __future__ import annotations

import pickletools
import sys
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from everloop.data.transformers import project_modules
from everloop.errors import CorruptionError, EverloopError, UsageError

if TYPE_CHECKING:
    from types import ModuleType


def dump_code(value: Any) -> bytes:
    """Return an object in cloudpickle's format, including the code that it needs.

    Raises:
        UsageError: it cannot be pickled; the message names the user's modules.
    """
    import cloudpickle

    try:
        blob: bytes = cloudpickle.dumps(value)
    except Exception as error:  # pickling calls the object's own methods, which can raise anything
        raise _refusal(value, error, ()) from error
    modules = _modules_of(blob)
    if not modules:
        return blob
    with ExitStack() as stack:
        known = cloudpickle.list_registry_pickle_by_value()
        for module in modules:
            if module.__name__ not in known:
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
        try:
            complete: bytes = cloudpickle.dumps(value)
        except Exception as error:
            raise _refusal(value, error, modules) from error
    return complete


def load_code(blob: bytes) -> Any:
    """Load what `dump_code` has written. It runs code: check the signature of the package first.

    Raises:
        CorruptionError: a module that it needs is missing here, or its own code fails.
        EverloopError: as the object's own code raises it, for a missing extra for example.
    """
    import cloudpickle

    try:
        return cloudpickle.loads(blob)
    except EverloopError:
        raise
    except ModuleNotFoundError as error:
        raise CorruptionError(
            f"The model needs the Python module '{error.name}', which is not installed here.",
            help=f"Install it. If '{error.name}' is a file of yours, package the model again where it can be imported.",
        ) from error
    except Exception as error:  # unpickling calls the object's own methods, which can raise anything
        raise CorruptionError(
            f"The model cannot be loaded: {type(error).__name__}: {error}",
            help="Install the versions of its lock file, or package the model again with those installed here.",
        ) from error


def _modules_of(blob: bytes) -> list[ModuleType]:
    """Return the user's modules that a pickle names, and the user's modules that those import."""
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
        for module in (sys.modules[name], *project_modules(SimpleNamespace(__module__=name))):
            if module.__name__.partition(".")[0] not in _NOT_OWN:
                found[module.__name__] = module
    return list(found.values())


_NOT_OWN = frozenset({"everloop", "__main__", *sys.stdlib_module_names})
_LIBRARY = f"{sys.base_prefix}/lib/python"


def _refusal(value: Any, error: Exception, modules: Any) -> UsageError:
    code = f" with the code of {', '.join(module.__name__ for module in modules)}" if modules else ""
    return UsageError(
        f"The {type(value).__name__} cannot be packaged{code}: {type(error).__name__}: {error}",
        help="Move what cannot be pickled (open files, locks, connections) out of the model and its modules, "
        "or install the module as a package where the model is served.",
    )
