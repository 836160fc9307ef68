"""The record of what a function depends on: digests of project code and values, versions of packages."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from everloop.pipeline.code.code_origin import find_distribution, origin_of
from everloop.pipeline.code.object_inspection import label_of
from everloop.pipeline.code.source_files import SourceFile, Stamp, find_bytecode, find_source, stamp_of
from everloop.pipeline.value_digests import digest_text

UNDIGESTIBLE = "untold: "
"""Prefix of a part that has no digest because its content cannot be read. The kind of the value follows."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that a function depends on. `parts`: `module.name` to digest; `packages`: distribution to version."""

    digest: str
    parts: dict[str, str]
    packages: dict[str, str]
    home: str
    """The module of the function itself, so that reasons can leave it out of names."""
    modules: dict[str, str]
    """Project module to its file, for other processes that have to import it."""


@dataclass
class CodeParts:
    """Collects the parts of one function's code while it is traced."""

    parts: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    """Source file to its stamp when it was read."""

    def as_code(self, home: str) -> Code:
        """What has been collected. `home` is the module of the traced function."""
        written = [text for label in sorted(self.parts) for text in (label, self.parts[label])]
        return Code(
            digest=f"code:{digest_text(*written)}",
            parts=dict(sorted(self.parts.items())),
            packages=dict(sorted(self.packages.items())),
            home=label_of(home),
            modules=self.modules,
        )

    def add_text(self, label: str, *texts: str) -> None:
        self.add_digest(label, digest_text(*texts))

    def add_digest(self, label: str, digest: str) -> None:
        """Add a part. A label that already has another digest gets a number: `module.name#2`."""
        number, free = 2, label
        while self.parts.get(free, digest) != digest:
            free, number = f"{label}#{number}", number + 1
        self.parts[free] = digest

    def add_package(self, module: str) -> None:
        """Record the version of the distribution that provides a module."""
        found = find_distribution(module.partition(".")[0])
        if found is not None:
            self.packages[found[0]] = found[1]

    def add_module(self, name: str) -> None:
        """Record the file of a project module."""
        filename = getattr(sys.modules.get(name), "__file__", None)
        if filename is None or name == "__main__" or name.partition(".")[0] == "everloop" or name in self.modules:
            return
        self.modules[name] = str(Path(filename).absolute())
        bytecode = find_bytecode(sys.modules[name])
        if bytecode is not None:
            # The module runs from this bytecode, not from the text of its file.
            self.add_text(f"{label_of(name)} (compiled)", bytecode)

    def is_project(self, module: str, filename: str | None) -> bool:
        """Whether code belongs to the project and has to be traced. The version of a package is recorded instead."""
        origin = origin_of(module, filename)
        if origin == "package":
            self.add_package(module)
        return origin == "project"

    def source(self, filename: str) -> SourceFile | None:
        """The parsed file; its stamp is remembered."""
        if filename not in self.stamps:
            self.stamps[filename] = stamp_of(filename)
        return find_source(filename)
