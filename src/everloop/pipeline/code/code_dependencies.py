"""What a function depends on: every function, class and constant of the project that running it may touch.

Starting at the step's function, each name that the code reads is looked up where Python would look it up (closure,
module) and followed: functions and classes by their syntax, everything else by its content. A value whose content
cannot be read is marked, so that the step runs each time. Code of the standard library is left out; for an installed
package, its version counts. The result is the same in every process and on every machine that has the same code.
"""

from __future__ import annotations

import ast
import enum
import importlib.util
import sys
import types
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from everloop.pipeline.code.canonical_syntax import write_syntax
from everloop.pipeline.code.code_parts import UNDIGESTIBLE, Code, CodeParts
from everloop.pipeline.code.constant_origins import find_constant_origin
from everloop.pipeline.code.lookups import CODE_TYPES, NameLookup, class_data, local_digest
from everloop.pipeline.code.mutated_values import MUTABLE, MutatedValues
from everloop.pipeline.code.name_usage import NameUsage, read_names
from everloop.pipeline.code.object_inspection import cells_of, file_of_methods, label_of, names_in, unwrapped
from everloop.pipeline.code.source_files import SourceFile, Stamp, stamp_of, write_instructions
from everloop.pipeline.value_digests import UndigestibleError, digest_value, is_constant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_VALUE_CONTAINERS = (types.SimpleNamespace, types.MappingProxyType, types.MethodType, types.GeneratorType)


@dataclass(slots=True)
class TracedCode:
    """The code of a function, with all that tells whether it is still the same."""

    code: Code
    lookups: list[NameLookup]
    stamps: dict[str, Stamp]

    def is_current(self) -> bool:
        return all(stamp_of(name) == stamp for name, stamp in self.stamps.items()) and all(
            lookup.is_current() for lookup in self.lookups
        )

    def accept_changes(self) -> None:
        """Accept what a step has done to its own constants: that is part of running it, not an edit of the code."""
        self.lookups = [now for lookup in self.lookups if (now := lookup.refreshed()) is not None]


@dataclass
class CodeDependencies:
    """Traces one function. Use an instance once."""

    record: CodeParts = field(default_factory=CodeParts)
    mutated: MutatedValues = field(default_factory=MutatedValues)
    lookups: list[NameLookup] = field(default_factory=list)
    visited: dict[int, object] = field(default_factory=dict)
    waiting: list[Callable[[], None]] = field(default_factory=list)

    def trace(self, function: Callable[..., Any]) -> TracedCode:
        plain = unwrapped(function)
        if isinstance(plain, types.FunctionType):
            home = plain.__globals__.get("__name__", "__main__")
            self._trace_function(plain, entry=True)
        else:
            home = getattr(type(plain), "__module__", "__main__")
            self._trace_value(plain, home, getattr(plain, "__name__", type(plain).__name__), source=None)
        while self.waiting:
            self.waiting.pop()()
        return TracedCode(self.record.as_code(home), self.mutated.without_changes(self.lookups), self.record.stamps)

    # --- functions, classes, modules ------------------------------------------------------------------------

    def _trace_function(self, function: types.FunctionType, *, entry: bool = False) -> None:
        if not self._is_first_visit(function):
            return
        code = function.__code__
        module = function.__globals__.get("__name__", "__main__")
        # The function of a step may be part of everloop: a step's own code always counts.
        if not entry and not self.record.is_project(module, code.co_filename):
            self._trace_decorated(function)
            return
        self.record.add_module(module)
        source = self.record.source(code.co_filename)
        node = source.find_function(code) if source else None
        label = f"{label_of(module)}.{code.co_qualname}"
        cells = cells_of(function)
        if node is None:
            # There is no text, or not the text that was imported: only the compiled code shows what runs.
            self.record.add_text(label, write_instructions(code))
            usages = [NameUsage((name,)) for name in names_in(code)]
        else:
            skip = _everloop_decorators(function.__globals__)
            self.record.add_text(label, write_syntax(node, entry=entry, skip_decorator=skip))
            usages = read_names(node, entry=entry, skip_decorator=skip)
        self._follow(usages, function.__globals__, cells, source, label)
        if function.__defaults__ and not entry:
            self._add_values(label, "defaults", function.__defaults__, source)
        if function.__kwdefaults__ and not entry:
            self._add_values(label, "keyword defaults", tuple(sorted(function.__kwdefaults__.items())), source)
        attributes = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
        if attributes:
            self._add_values(label, "attributes", attributes, source)
        if "__wrapped__" in vars(function):
            self._queue(function.__wrapped__, module, code.co_name, source)  # type: ignore[attr-defined]

    def _trace_decorated(self, function: types.FunctionType) -> None:
        """Trace the project's functions inside a wrapper of a package: `contextmanager`, `singledispatch`, `retry`."""
        wrapped = vars(function).get("__wrapped__")
        values = [*cells_of(function).values(), *([] if wrapped is None else [wrapped])]
        for value in map(unwrapped, values):
            if isinstance(value, types.FunctionType | type):
                self._queue(value, "", function.__name__, None)
            elif not is_constant(value) and not isinstance(value, types.ModuleType):
                # The wrapper's other values come from where it was applied, and that code is traced by itself.
                with suppress(UndigestibleError):
                    self._digest(value, "", function.__name__, None)

    def _trace_class(self, cls: type) -> None:
        if not self._is_first_visit(cls):
            return
        module = sys.modules.get(cls.__module__)
        filename = getattr(module, "__file__", None) or file_of_methods(cls)
        if not self.record.is_project(cls.__module__, filename):
            return
        self.record.add_module(cls.__module__)
        namespace = vars(module) if module is not None else {}
        source = self.record.source(filename) if filename else None
        node = source.find_class(cls.__qualname__) if source else None
        label = f"{label_of(cls.__module__)}.{cls.__qualname__}"
        methods = [item for item in map(unwrapped, vars(cls).values()) if isinstance(item, types.FunctionType)]
        defined_here = [item for item in methods if item.__qualname__.startswith(f"{cls.__qualname__}.")]
        cells: dict[str, Any] = {}
        for method in defined_here:
            cells.update(cells_of(method))
        in_file = [item for item in defined_here if item.__code__.co_filename == filename]
        data = dict(class_data(cls))
        if issubclass(cls, enum.Enum):
            data = {name: member._value_ for name, member in cls.__members__.items()} | {
                name: value for name, value in data.items() if not isinstance(value, cls)
            }
        # The values count too: a statement elsewhere, or a file that was read with the class, may have set them.
        values = [self._content(data, "", label, source)] if data else []
        if values and values[0].startswith(UNDIGESTIBLE):
            self.record.add_digest(f"{label} attributes", values.pop())
        for method in methods:
            if method not in defined_here:
                self._queue(method, cls.__module__, method.__name__, source)
        if source is None or node is None or not all(source.find_function(item.__code__) for item in in_file):
            # The class was made by a call, or its file has been edited since.
            self.record.add_text(label, *(write_instructions(item.__code__) for item in defined_here), *values)
            for base in cls.__bases__:
                self._queue(base, cls.__module__, base.__name__, source)
            for method in defined_here:
                usages = [NameUsage((name,)) for name in names_in(method.__code__)]
                self._follow(usages, method.__globals__, cells, source, label)
            return
        skip = _everloop_decorators(namespace)
        self.record.add_text(label, write_syntax(node, skip_decorator=skip), *values)
        self._follow(read_names(node, skip_decorator=skip), namespace, cells, source, label)

    def _trace_class_or_package(self, cls: type) -> None:
        module = sys.modules.get(cls.__module__)
        if self.record.is_project(cls.__module__, getattr(module, "__file__", None)):
            self._trace_class(cls)

    def _trace_module(self, module: types.ModuleType) -> None:
        """Trace a module that is used as a value: any part of it may be read."""
        if not self._is_first_visit(module) or not module.__file__:
            return
        self.record.add_module(module.__name__)
        source = self.record.source(module.__file__)
        if source is not None:
            label = label_of(module.__name__)
            self.record.add_text(label, write_syntax(source.tree))
            self._follow(read_names(source.tree), vars(module), {}, source, label)
            # Include what no statement reads, such as a table that was loaded from a file at import.
            bound = {name: value for name, value in vars(module).items() if name in source.bindings}
            for name, value in bound.items():
                if not isinstance(value, CODE_TYPES) and not isinstance(value, type):
                    origin, origin_source = find_constant_origin(module.__name__, name, source, self.record.source)
                    self._look_up(vars(module), name)
                    self._queue(value, origin, name, origin_source)

    def _trace_value(self, value: Any, module: str, name: str, source: SourceFile | None) -> None:
        value = unwrapped(value)
        if isinstance(value, types.FunctionType):
            self._trace_function(value)
        elif isinstance(value, type):
            self._trace_class_or_package(value)
        elif isinstance(value, types.ModuleType):
            if self.record.is_project(value.__name__, getattr(value, "__file__", None)):
                self._trace_module(value)
        elif isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType | types.GetSetDescriptorType):
            self.record.is_project(getattr(value, "__module__", None) or "builtins", None)
        elif not _is_typing(value):
            self._add_data(value, module, name, source)

    # --- data -----------------------------------------------------------------------------------------------

    def _add_data(self, value: Any, module: str, name: str, source: SourceFile | None) -> None:
        label = f"{label_of(module)}.{name}"
        if self.mutated.is_container(value) or self.mutated.is_rebound(label):
            self.record.parts[label] = self._first_content(value, module, name, source)
        elif label not in self.record.parts:
            self.record.parts[label] = self._content(value, module, name, source)

    def _add_cell(self, value: Any, name: str, label: str, source: SourceFile | None) -> None:
        """Add a closure's value: code is traced, data digested."""
        value = unwrapped(value)
        if isinstance(value, types.FunctionType | type | types.ModuleType):
            self._queue(value, "", name, source)
            return
        part = f"{label}.{name}"
        if self.mutated.is_container(value):
            self.record.parts[part] = self._first_content(value, "", name, source)
        elif part not in self.record.parts:
            self.record.parts[part] = self._content(value, "", name, source)

    def _add_values(self, label: str, kind: str, values: object, source: SourceFile | None) -> None:
        self.record.add_digest(f"{label} {kind}", self._content(values, "", label, source))

    def _first_content(self, value: Any, module: str, name: str, source: SourceFile | None) -> str:
        return self.mutated.first_content(value, module, name, lambda: self._content(value, module, name, source))

    def _content(self, value: Any, module: str, name: str, source: SourceFile | None) -> str:
        """A digest of a value, or a marker with the value's kind where its content cannot be read."""
        try:
            return self._digest(value, module, name, source)
        except UndigestibleError as error:
            self._trace_class_or_package(type(value))
            return f"{UNDIGESTIBLE}{error}"

    def _digest(self, value: object, module: str, name: str, source: SourceFile | None) -> str:
        return digest_value(value, lambda inner: self._refer(inner, module, name, source))

    def _refer(self, value: Any, module: str, name: str, source: SourceFile | None) -> str | None:
        """The text that stands for code inside a container; the code itself is traced. None for data."""
        value = unwrapped(value)
        if isinstance(value, types.FunctionType):
            self.waiting.append(lambda: self._trace_function(value))
            return f"{label_of(value.__globals__.get('__name__', ''))}.{value.__code__.co_qualname}"
        if isinstance(value, type):
            self.waiting.append(lambda: self._trace_class_or_package(value))
            return f"{label_of(str(value.__module__))}.{value.__qualname__}"
        if isinstance(value, types.ModuleType):
            self._queue(value, module, name, source)
            return f"module {label_of(value.__name__)}"
        if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | None):
            self.record.is_project(value.__module__ or "builtins", None)
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, types.MethodType):
            self._queue(value.__func__, module, name, source)
            return f"method {value.__func__.__qualname__} of {self._digest(value.__self__, module, name, source)}"
        if _is_typing(value):
            return f"{type(value).__qualname__} {value!r}"
        return None

    # --- names ----------------------------------------------------------------------------------------------

    def _follow(
        self,
        usages: Iterable[NameUsage],
        namespace: Mapping[str, Any],
        cells: Mapping[str, Any],
        source: SourceFile | None,
        label: str,
    ) -> None:
        module = namespace.get("__name__", "__main__")
        for usage in usages:
            if usage.module is not None:
                self._follow_import(usage, namespace)
                continue
            name = usage.names[0]
            if name in cells:
                if usage.changes and len(usage.names) == 1:
                    self.mutated.note_container(cells[name])
                self._add_cell(cells[name], name, label, source)
            elif name in namespace:
                found = self._look_up(namespace, name)
                if usage.changes and usage.names == (name,) and not isinstance(found, MUTABLE):
                    self.mutated.note_rebound(namespace, name, f"{label_of(str(module))}.{name}")
                self._follow_attributes(found, usage, str(module), source)
            # Otherwise it is a builtin, or a name that does not exist yet: the syntax already contains it.

    def _follow_attributes(self, value: Any, usage: NameUsage, module: str, source: SourceFile | None) -> None:
        """Follow `helpers.tables.read` through modules to the first object that is not a module."""
        attribute = usage.names[0]
        for name in usage.names[1:]:
            if not isinstance(value, types.ModuleType):
                break
            if not self.record.is_project(value.__name__, getattr(value, "__file__", None)):
                return
            self.record.add_module(value.__name__)
            module, attribute = value.__name__, name
            source = self.record.source(value.__file__) if value.__file__ else None
            if name not in vars(value):
                return
            value = self._look_up(vars(value), name)
        if not isinstance(value, types.ModuleType | types.FunctionType | type):
            module, source = find_constant_origin(module, attribute, source, self.record.source)
            if usage.changes:
                self.mutated.note_container(value)
        self._queue(value, module, attribute, source)

    def _follow_import(self, usage: NameUsage, namespace: Mapping[str, Any]) -> None:
        """Follow a name that the function imports itself. Project modules are imported for this, packages are not."""
        module = str(usage.module)
        if usage.level:
            module = importlib.util.resolve_name("." * usage.level + module, str(namespace.get("__package__") or ""))
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names:
            return
        if module not in sys.modules:
            try:
                spec = importlib.util.find_spec(top)
            except (ImportError, ValueError):
                return
            if spec is None:
                return
            if top == "everloop" or any(part in (spec.origin or "") for part in ("site-packages", "dist-packages")):
                self.record.add_package(top)
                return
            __import__(module)
        if not self.record.is_project(module, getattr(sys.modules[module], "__file__", None)):
            return
        self._follow_attributes(sys.modules[module], replace(usage, names=(module, *usage.names)), module, None)

    def _look_up(self, namespace: Mapping[str, Any], name: str) -> Any:
        found = namespace[name]
        self.lookups.append(NameLookup(namespace, name, found, local_digest(found)))
        return found

    # --- order of work --------------------------------------------------------------------------------------

    def _queue(self, value: Any, module: str, name: str, source: SourceFile | None) -> None:
        # A work list instead of recursion: chains of helpers can be longer than Python's stack.
        self.waiting.append(lambda: self._trace_value(value, module, name, source))

    def _is_first_visit(self, value: object) -> bool:
        if id(value) in self.visited:
            return False
        self.visited[id(value)] = value
        return True


def _is_typing(value: object) -> bool:
    return type(value).__module__ in ("typing", "types") and not isinstance(value, _VALUE_CONTAINERS)


def _everloop_decorators(namespace: Mapping[str, Any]) -> Callable[[ast.expr], bool]:
    """A test for decorators of everloop: they change how a function is run, not what it does."""

    def is_ours(decorator: ast.expr) -> bool:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        names: list[str] = []
        while isinstance(target, ast.Attribute):
            names.append(target.attr)
            target = target.value
        if not isinstance(target, ast.Name):
            return False
        value = namespace.get(target.id)
        for name in reversed(names):
            value = getattr(value, name, None)
        return str(getattr(value, "__module__", "")).partition(".")[0] == "everloop"

    return is_ours
