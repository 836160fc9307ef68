"""What a function reaches: every function, class and constant of the project that running it may touch.

From the step's function outwards, each name that the code reads is looked up where Python would look it up
(closure, module) and followed: functions and classes by their syntax, everything else by its content. What the code
itself changes while it runs (a module's own cache) counts as it was before any step ran here. A value whose content
cannot be told is noted as such, so that the step runs each time. Code of the standard library is left out; of an
installed package the version counts. The result is the same in every process and on every machine that has the same
code.
"""

from __future__ import annotations

import ast
import enum
import importlib.util
import sys
import types
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.pipeline.code.canonical_syntax import write_syntax
from everloop.pipeline.code.code_origin import find_distribution, origin_of
from everloop.pipeline.code.name_usage import NameUsage, readings
from everloop.pipeline.code.object_inspection import cells_of, file_of_methods, label_of, names_in, unwrapped
from everloop.pipeline.code.source_files import (
    SourceFile,
    Stamp,
    find_bytecode,
    find_source,
    stamp_of,
    write_instructions,
)
from everloop.pipeline.value_digests import UndigestibleError, digest_text, digest_value, is_constant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_MISSING = object()
_MUTABLE = (list, dict, set, bytearray)
UNTOLD = "untold: "
"""Begins a part that is not a digest, since the content behind it cannot be told. The kind of the value follows."""
_MADE_OF_VALUES = (types.SimpleNamespace, types.MappingProxyType, types.MethodType, types.GeneratorType)
_CODE = (types.FunctionType, types.ModuleType, types.BuiltinFunctionType)
# What Python itself keeps in a class.
_UNSEEN_ATTRIBUTES = frozenset(
    {"_abc_impl", "_member_map_", "_member_names_", "_value2member_map_", "_hashable_values_", "_unhashable_values_"}
)


@dataclass(frozen=True, slots=True)
class Code:
    """What a function reaches. `parts`: `module.name` to digest; `packages`: distribution to version."""

    digest: str
    parts: dict[str, str]
    packages: dict[str, str]
    home: str
    """The module of the function itself, so that reasons can leave it out of names."""
    modules: dict[str, str]
    """Project module to its file, for processes that have to find it."""


@dataclass(frozen=True, slots=True)
class Looked:
    """One look-up, kept to see later whether it would still give the same object."""

    names: Mapping[str, Any]
    name: str
    found: object
    content: str | None
    """Of what can be changed in place, a digest of its content in this process."""

    def still(self) -> bool:
        now = self.names.get(self.name, _MISSING)
        return now is self.found and (self.content is None or content_here(now) == self.content)


@dataclass(slots=True)
class Known:
    code: Code
    looked: list[Looked]
    stamps: dict[str, Stamp]

    def still(self) -> bool:
        return all(stamp_of(name) == stamp for name, stamp in self.stamps.items()) and all(
            one.still() for one in self.looked
        )

    def settle(self) -> None:
        """Take what a step has done to its own constants as part of running it, not as an edit of the code."""
        self.looked = [
            one if one.content is None else replace(one, found=now, content=content_here(now))
            for one in self.looked
            if (now := one.names.get(one.name, _MISSING)) is not _MISSING
        ]


def content_here(value: object) -> str | None:
    """A digest of what can be changed in place, to be compared in this process only. None where there is nothing."""
    if is_constant(value) or isinstance(value, _CODE):
        return None
    try:
        if isinstance(value, type):
            if origin_of(str(value.__module__)) != "project":
                return None
            return digest_value(dict(_attributes_of(value)), _refer_here)
        return digest_value(value, _refer_here)
    except UndigestibleError:
        return None


def _refer_here(value: object) -> str | None:
    value = unwrapped(value)
    if isinstance(value, (*_CODE, type)):
        return f"{type(value).__name__} at {id(value)}"
    return None


def _attributes_of(cls: type) -> Iterator[tuple[str, Any]]:
    """The data that a class holds, without what its own statement in the source cannot but say."""
    for name, value in vars(cls).items():
        dunder = name.startswith("__") and name.endswith("__")
        if dunder or name in _UNSEEN_ATTRIBUTES:
            continue
        # Methods and what packages put into a class follow from its statement; a descriptor of the project holds data.
        if not hasattr(type(value), "__get__") or origin_of(str(type(value).__module__)) == "project":
            yield name, value


_first_seen: dict[tuple[int, str], tuple[object, str]] = {}
"""Of what code changes while it runs: the object, or the module that binds the name, and the digest when it was first
seen, before any step ran here."""


@dataclass
class CodeDependencies:
    parts: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    looked: list[Looked] = field(default_factory=list)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    seen: dict[int, object] = field(default_factory=dict)
    waiting: list[Callable[[], None]] = field(default_factory=list)
    written: dict[int, object] = field(default_factory=dict)
    """Containers that the code writes to, by their identity."""
    rebound: dict[tuple[int, str], str] = field(default_factory=dict)
    """Names that the code binds anew by `global`, each with its part."""

    def trace(self, function: Callable[..., Any]) -> Known:
        plain = unwrapped(function)
        if isinstance(plain, types.FunctionType):
            home = plain.__globals__.get("__name__", "__main__")
            self._function(plain, entry=True)
        else:
            home = getattr(type(plain), "__module__", "__main__")
            self._value(plain, home, getattr(plain, "__name__", type(plain).__name__), source=None)
        while self.waiting:
            self.waiting.pop()()
        written = [text for label in sorted(self.parts) for text in (label, self.parts[label])]
        code = Code(
            digest=f"code:{digest_text(*written)}",
            parts=dict(sorted(self.parts.items())),
            packages=dict(sorted(self.packages.items())),
            home=label_of(home),
            modules=self.modules,
        )
        looked = [
            replace(one, content=None) if id(one.found) in self.written else one
            for one in self.looked
            if (id(one.names), one.name) not in self.rebound
        ]
        return Known(code, looked, self.stamps)

    # --- things ---------------------------------------------------------------------------------------------

    def _function(self, function: types.FunctionType, *, entry: bool = False) -> None:
        if not self._first(function):
            return
        code = function.__code__
        module = function.__globals__.get("__name__", "__main__")
        # The functions of a step may stand in everloop itself: a step's own code always counts.
        if not entry and not self._is_project(module, code.co_filename):
            self._decorated(function)
            return
        self._remember_module(module)
        source = self._source(code.co_filename)
        node = source.find_function(code) if source else None
        label = f"{label_of(module)}.{code.co_qualname}"
        cells = cells_of(function)
        if node is None:
            # No text, or a text that is not what was imported: the compiled code is the truth.
            self._add(label, write_instructions(code))
            names = [NameUsage((name,)) for name in names_in(code)]
        else:
            skip = self._is_ours(function.__globals__)
            self._add(label, write_syntax(node, entry=entry, skip_decorator=skip))
            names = readings(node, entry=entry, skip_decorator=skip)
        self._follow(names, function.__globals__, cells, source, label)
        if function.__defaults__ and not entry:
            self._values(label, "defaults", function.__defaults__, source)
        if function.__kwdefaults__ and not entry:
            self._values(label, "keyword defaults", tuple(sorted(function.__kwdefaults__.items())), source)
        held = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
        if held:
            self._values(label, "attributes", held, source)
        if "__wrapped__" in vars(function):
            self._later(function.__wrapped__, module, code.co_name, source)  # type: ignore[attr-defined]

    def _decorated(self, function: types.FunctionType) -> None:
        """The project's functions inside a wrapper of a package: `contextmanager`, `singledispatch`, `retry`."""
        wrapped = vars(function).get("__wrapped__")
        values = [*cells_of(function).values(), *([] if wrapped is None else [wrapped])]
        for value in map(unwrapped, values):
            if isinstance(value, types.FunctionType | type):
                self._later(value, "", function.__name__, None)
            elif not is_constant(value) and not isinstance(value, types.ModuleType):
                # What else the wrapper holds was written where it was applied, and that is read by itself.
                with suppress(UndigestibleError):
                    self._inside(value, "", function.__name__, None)

    def _class(self, cls: type) -> None:
        if not self._first(cls):
            return
        module = sys.modules.get(cls.__module__)
        filename = getattr(module, "__file__", None) or file_of_methods(cls)
        if not self._is_project(cls.__module__, filename):
            return
        self._remember_module(cls.__module__)
        names = vars(module) if module is not None else {}
        source = self._source(filename) if filename else None
        node = source.find_class(cls.__qualname__) if source else None
        label = f"{label_of(cls.__module__)}.{cls.__qualname__}"
        methods = [item for item in map(unwrapped, vars(cls).values()) if isinstance(item, types.FunctionType)]
        own = [item for item in methods if item.__qualname__.startswith(f"{cls.__qualname__}.")]
        cells: dict[str, Any] = {}
        for method in own:
            cells.update(cells_of(method))
        in_file = [item for item in own if item.__code__.co_filename == filename]
        data = dict(_attributes_of(cls))
        if issubclass(cls, enum.Enum):
            data = {name: member._value_ for name, member in cls.__members__.items()} | {
                name: value for name, value in data.items() if not isinstance(value, cls)
            }
        # Their values, for a statement elsewhere may have set them, or a file that was read with the class.
        values = [self._content(data, "", label, source)] if data else []
        if values and values[0].startswith(UNTOLD):
            self._add_digest(f"{label} attributes", values.pop())
        for method in methods:
            if method not in own:
                self._later(method, cls.__module__, method.__name__, source)
        if source is None or node is None or not all(source.find_function(item.__code__) for item in in_file):
            # Made by a call, or its file has been edited since.
            self._add(label, *(write_instructions(item.__code__) for item in own), *values)
            for base in cls.__bases__:
                self._later(base, cls.__module__, base.__name__, source)
            for method in own:
                reads = [NameUsage((name,)) for name in names_in(method.__code__)]
                self._follow(reads, method.__globals__, cells, source, label)
            return
        skip = self._is_ours(names)
        self._add(label, write_syntax(node, skip_decorator=skip), *values)
        self._follow(readings(node, skip_decorator=skip), names, cells, source, label)

    def _module(self, module: types.ModuleType) -> None:
        """A module that is used as a value: all of it may be read."""
        if not self._first(module) or not module.__file__:
            return
        self._remember_module(module.__name__)
        source = self._source(module.__file__)
        if source is not None:
            self._add(label_of(module.__name__), write_syntax(source.tree))
            self._follow(readings(source.tree), vars(module), {}, source, label_of(module.__name__))
            # Also what no statement reads: a table that was made from a file when the module was imported.
            bound = {name: value for name, value in vars(module).items() if name in source.bindings}
            for name, value in bound.items():
                if not isinstance(value, _CODE) and not isinstance(value, type):
                    place, at = self._home(module.__name__, name, source)
                    self._look(vars(module), name)
                    self._later(value, place, name, at)

    def _value(self, value: Any, module: str, name: str, source: SourceFile | None) -> None:
        value = unwrapped(value)
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class_or_package(value)
        elif isinstance(value, types.ModuleType):
            if self._is_project(value.__name__, getattr(value, "__file__", None)):
                self._module(value)
        elif isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType | types.GetSetDescriptorType):
            self._is_project(getattr(value, "__module__", None) or "builtins", None)
        elif not self._is_typing(value):
            self._data(value, module, name, source)

    def _data(self, value: Any, module: str, name: str, source: SourceFile | None) -> None:
        """A value that is not code, by its content."""
        label = f"{label_of(module)}.{name}"
        if id(value) in self.written or label in self.rebound.values():
            self.parts[label] = self._first_content(value, module, name, source)
        elif label not in self.parts:
            self.parts[label] = self._content(value, module, name, source)

    def _content(self, value: Any, module: str, name: str, source: SourceFile | None) -> str:
        try:
            return self._inside(value, module, name, source)
        except UndigestibleError as error:
            self._class_or_package(type(value))
            return f"{UNTOLD}{error}"

    def _first_content(self, value: Any, module: str, name: str, source: SourceFile | None) -> str:
        """Of what the code changes: its content when it was first seen here, which is before any step ran.

        Of a name that is bound to other objects, the first object stands.
        """
        holder: object = value
        if id(value) not in self.written and module in sys.modules:
            holder = sys.modules[module]
        key = (id(holder), "" if holder is value else name)
        known = _first_seen.get(key)
        if known is None or known[0] is not holder:
            known = _first_seen[key] = (holder, self._content(value, module, name, source))
        else:
            # Code that was put in there since is followed all the same.
            self._content(value, module, name, source)
        return known[1]

    def _refer(self, value: Any, module: str, name: str, source: SourceFile | None) -> str | None:
        """What stands inside a container: code is followed."""
        value = unwrapped(value)
        if isinstance(value, types.FunctionType):
            self.waiting.append(lambda: self._function(value))
            return f"{label_of(value.__globals__.get('__name__', ''))}.{value.__code__.co_qualname}"
        if isinstance(value, type):
            self.waiting.append(lambda: self._class_or_package(value))
            return f"{label_of(str(value.__module__))}.{value.__qualname__}"
        if isinstance(value, types.ModuleType):
            self._later(value, module, name, source)
            return f"module {label_of(value.__name__)}"
        if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | None):
            self._is_project(value.__module__ or "builtins", None)
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, types.MethodType):
            self._later(value.__func__, module, name, source)
            return f"method {value.__func__.__qualname__} of {self._inside(value.__self__, module, name, source)}"
        if self._is_typing(value) and not isinstance(value, _MADE_OF_VALUES):
            return f"{type(value).__qualname__} {value!r}"
        return None

    def _inside(self, value: object, module: str, name: str, source: SourceFile | None) -> str:
        return digest_value(value, lambda inner: self._refer(inner, module, name, source))

    # --- names ----------------------------------------------------------------------------------------------

    def _follow(
        self,
        names: Iterable[NameUsage],
        space: Mapping[str, Any],
        cells: Mapping[str, Any],
        source: SourceFile | None,
        label: str,
    ) -> None:
        module = space.get("__name__", "__main__")
        for reading in names:
            if reading.module is not None:
                self._follow_import(reading, space)
                continue
            name = reading.names[0]
            if name in cells:
                if reading.changes and len(reading.names) == 1:
                    self._note_written(cells[name])
                self._cell(cells[name], name, label, source)
            elif name in space:
                found = self._look(space, name)
                if reading.changes and reading.names == (name,) and not isinstance(found, _MUTABLE):
                    self.rebound[(id(space), name)] = f"{label_of(str(module))}.{name}"
                self._follow_attributes(found, reading, str(module), source)
            # Otherwise a builtin, or a name that is not there yet: the syntax tells it.

    def _follow_attributes(self, value: Any, reading: NameUsage, module: str, source: SourceFile | None) -> None:
        """Walk `helpers.tables.read` through modules to the first thing that is none."""
        names = reading.names
        place, at = module, names[0]
        for name in names[1:]:
            if not isinstance(value, types.ModuleType):
                break
            if not self._is_project(value.__name__, getattr(value, "__file__", None)):
                return
            self._remember_module(value.__name__)
            place, at = value.__name__, name
            source = self._source(value.__file__) if value.__file__ else None
            if name not in vars(value):
                return
            value = self._look(vars(value), name)
        if not isinstance(value, types.ModuleType | types.FunctionType | type):
            place, source = self._home(place, at, source)
            if reading.changes:
                self._note_written(value)
        self._later(value, place, at, source)

    def _follow_import(self, reading: NameUsage, space: Mapping[str, Any]) -> None:
        """A name that the function imports by itself. Packages are not imported for this, project modules are."""
        module = str(reading.module)
        if reading.level:
            module = importlib.util.resolve_name("." * reading.level + module, str(space.get("__package__") or ""))
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
                self._package(top)
                return
            __import__(module)
        if not self._is_project(module, getattr(sys.modules[module], "__file__", None)):
            return
        self._follow_attributes(sys.modules[module], replace(reading, names=(module, *reading.names)), module, None)

    def _cell(self, value: Any, name: str, label: str, source: SourceFile | None) -> None:
        """A closure's value: code is followed, data digested; else the enclosing function's text stands for it."""
        value = unwrapped(value)
        if isinstance(value, types.FunctionType | type | types.ModuleType):
            self._later(value, "", name, source)
            return
        part = f"{label}.{name}"
        if id(value) in self.written:
            self.parts[part] = self._first_content(value, "", name, source)
        elif part not in self.parts:
            self.parts[part] = self._content(value, "", name, source)

    def _home(self, module: str, name: str, source: SourceFile | None) -> tuple[str, SourceFile | None]:
        """Where a constant was first bound: `from helpers import LIMIT` leads to `helpers`."""
        for _ in range(20):
            if source is None:
                return module, source
            statements = source.bindings.get(name)
            found = statements[-1] if statements else self._star(module, name, source)
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
            module, source = target, self._source(filename)
        return module, source

    def _star(self, module: str, name: str, source: SourceFile) -> ast.ImportFrom | None:
        package = getattr(sys.modules.get(module), "__package__", None) or ""
        for node in source.star_imports:
            target = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if hasattr(sys.modules.get(target), name):
                return node
        return None

    def _note_written(self, value: Any) -> None:
        """Only containers: an object whose method is called `add` or `update` need not change by it."""
        if isinstance(value, _MUTABLE):
            self.written[id(value)] = value

    def _look(self, space: Mapping[str, Any], name: str) -> Any:
        found = space[name]
        self.looked.append(Looked(space, name, found, content_here(found)))
        return found

    # --- bookkeeping ----------------------------------------------------------------------------------------

    def _later(self, value: Any, module: str, name: str, source: SourceFile | None) -> None:
        # A work list instead of recursion: chains of helpers can be longer than Python's stack.
        self.waiting.append(lambda: self._value(value, module, name, source))

    def _first(self, value: object) -> bool:
        if id(value) in self.seen:
            return False
        self.seen[id(value)] = value
        return True

    def _add(self, label: str, *texts: str) -> None:
        self._add_digest(label, digest_text(*texts))

    def _add_digest(self, label: str, digest: str) -> None:
        number, free = 2, label
        while self.parts.get(free, digest) != digest:
            free, number = f"{label}#{number}", number + 1
        self.parts[free] = digest

    def _values(self, label: str, what: str, values: object, source: SourceFile | None) -> None:
        self._add_digest(f"{label} {what}", self._content(values, "", label, source))

    def _source(self, filename: str) -> SourceFile | None:
        if filename not in self.stamps:
            self.stamps[filename] = stamp_of(filename)
        return find_source(filename)

    def _is_project(self, module: str, filename: str | None) -> bool:
        """Whether code is to be followed; if a package provides it, its version is noted."""
        origin = origin_of(module, filename)
        if origin == "package":
            self._package(module)
        return origin == "project"

    def _package(self, module: str) -> None:
        found = find_distribution(module.partition(".")[0])
        if found is not None:
            self.packages[found[0]] = found[1]

    def _class_or_package(self, cls: type) -> None:
        module = sys.modules.get(cls.__module__)
        if self._is_project(cls.__module__, getattr(module, "__file__", None)):
            self._class(cls)

    def _remember_module(self, name: str) -> None:
        filename = getattr(sys.modules.get(name), "__file__", None)
        if filename is None or name == "__main__" or name.partition(".")[0] == "everloop" or name in self.modules:
            return
        self.modules[name] = str(Path(filename).absolute())
        bytecode = find_bytecode(sys.modules[name])
        if bytecode is not None:
            # Then this is what runs, and the text is not.
            self._add(f"{label_of(name)} (compiled)", bytecode)

    @staticmethod
    def _is_typing(value: object) -> bool:
        return type(value).__module__ in ("typing", "types") and not isinstance(value, _MADE_OF_VALUES)

    @staticmethod
    def _is_ours(space: Mapping[str, Any]) -> Callable[[ast.expr], bool]:
        """Decorators of everloop change how a function is run, not what it does."""

        def ours(decorator: ast.expr) -> bool:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            names: list[str] = []
            while isinstance(target, ast.Attribute):
                names.append(target.attr)
                target = target.value
            if not isinstance(target, ast.Name):
                return False
            value = space.get(target.id)
            for name in reversed(names):
                value = getattr(value, name, None)
            return str(getattr(value, "__module__", "")).partition(".")[0] == "everloop"

        return ours
