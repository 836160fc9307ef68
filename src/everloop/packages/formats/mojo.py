"""H2O's MOJO, read without H2O or Java: boosted trees (gbm), forests (drf) and linear models (glm).

A MOJO is a zip of a text, `model.ini`, the categories of each column, and one binary file per tree. Trees are converted
to a text that LightGBM's library scores in microseconds, and linear models are computed with NumPy, so a MOJO is as
fast as a model that everloop trained. Other algorithms are not supported. The zip is stored unchanged and contains no
code.

Sources: H2O, "MOJO Quick Start"; h2o-genmodel `SharedTreeMojoModel.scoreTree`, `GbmMojoModel`, `DrfMojoModel`,
`GlmMojoModel`. Verified against predictions of H2O itself.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from everloop.errors import CorruptionError, RequestError, UsageError
from everloop.packages.compilation.compiled_model import CompiledForm, LinearForm, TreeForm
from everloop.packages.compilation.preprocessing import DOUBLE_MAX, InputSegment, Op, Preparation
from everloop.packages.compilation.tree_ensembles import Tree, TreeNode, build_tree, model_text
from everloop.packages.formats.input_tables import TableKind
from everloop.training.class_decisions import PLAIN, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json
    from everloop.training.trained_model import Files, Task

    Array = NDArray[np.float64]

_STATE, _MODEL = "mojo.json", "model.zip"
_TASKS: dict[str, Task] = {"Binomial": "binary", "Multinomial": "multiclass", "Regression": "regression"}
_OLDEST = 1.2
"""The oldest supported version of the trees' binary format."""
_MOST_BYTES = 2**30
_LEAF, _NA_VS_REST, _NA_LEFT, _LEFT = 65535, 1, 2, 4


@dataclass(frozen=True, kw_only=True)
class Mojo:
    """The content of a MOJO."""

    info: dict[str, str]
    features: tuple[str, ...]
    domains: dict[int, tuple[str, ...]]
    """The categories of columns, by index; the target comes after the features."""
    files: dict[str, bytes]
    task: Task

    @property
    def classes(self) -> list[Json]:
        return list(self.domains.get(len(self.features), ())) if self.task != "regression" else []

    def numbers(self, name: str) -> list[float]:
        text = self.info.get(name, "null")
        return [] if text == "null" else [float(part) for part in text.strip("[]").split(",") if part.strip()]

    def flag(self, name: str) -> bool:
        return self.info.get(name) == "true"


class MojoModel:
    """A `Model` around a MOJO."""

    format = "mojo"

    def __init__(self, blob: bytes, table: TableKind) -> None:
        self._blob, self.table = blob, table
        self.mojo = read_mojo(blob)
        self.task: Task = self.mojo.task
        self.inputs = table.names
        if self.inputs != self.mojo.features:
            raise CorruptionError("The MOJO's columns differ from those of its table.", help="Package the model again.")
        self.form = _form(self.mojo)
        # H2O predicts the second class from this threshold on. Source: `GenModel.getPrediction`.
        border = self.mojo.info.get("default_threshold") if self.task == "binary" else None
        self.rule = PLAIN if border is None else Rule(threshold=float(border))

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.form.frame(self.table.cast(frame))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        try:
            scores = np.array([self.form.row([row[name] for name in self.inputs]) for row in rows], dtype=np.float64)
        except KeyError as error:
            raise RequestError(f"Column {error} is missing.", help=f"Inputs: {', '.join(self.inputs[:30])}") from error
        return scores if self.task == "multiclass" else scores.reshape(len(rows))

    def to_files(self) -> Files:
        state = {"version": 1, "table": self.table.to_json()}
        return {_MODEL: self._blob, _STATE: json.dumps(state, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            return cls(files[_MODEL], TableKind.from_json(json.loads(files[_STATE])["table"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"These files are not a MOJO: {error!r}.", help="Package the model again.") from error

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (self.to_files(),)


def is_mojo(blob: bytes) -> bool:
    """Whether bytes are a zip with a MOJO's `model.ini`."""
    if not blob.startswith(b"PK"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            return "model.ini" in archive.namelist()
    except zipfile.BadZipFile:
        return False


def adopt_mojo(blob: bytes, table: TableKind) -> tuple[MojoModel, list[Json]]:
    """Wrap a MOJO without changing it; the example determines the types of its columns.

    Raises:
        UsageError: its algorithm is not supported, or the example lacks its columns.
    """
    mojo = read_mojo(blob)
    by_name = {column.name: column for column in table.columns}
    absent = [name for name in mojo.features if name not in by_name]
    if absent:
        raise UsageError(
            f"The example lacks the columns {', '.join(map(repr, absent[:8]))}, which the MOJO was trained on.",
            help=f"It has: {', '.join(table.names[:30])}",
        )
    for index, name in enumerate(mojo.features):
        if (index in mojo.domains) != (by_name[name].type == "String"):
            kind = "categories" if index in mojo.domains else "numbers"
            raise UsageError(
                f"'{name}' holds {kind} in the MOJO, but is {by_name[name].type} in the example.",
                help=f"Convert the example's column to {'texts' if index in mojo.domains else 'numbers'}.",
            )
    chosen = TableKind(container="polars", columns=tuple(by_name[name] for name in mojo.features))
    return MojoModel(blob, chosen), mojo.classes


def read_mojo(blob: bytes) -> Mojo:
    """Read a MOJO.

    Raises:
        CorruptionError: the bytes are not a MOJO.
        UsageError: its algorithm or one of its settings is not supported.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
                raise CorruptionError(f"The MOJO unpacks to more than {_MOST_BYTES:,} bytes.")
            files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("_aux.bin")}
        sections = _sections(files["model.ini"].decode())
        info = dict(line.split(" = ", 1) for line in sections["info"] if " = " in line)
        columns = sections["columns"]
        domains = {}
        for line in sections.get("domains", ()):
            index, size, name = re.split(r":? ", line, maxsplit=2)
            values = files[f"domains/{name}"].decode().split("\n")[: int(size)]
            domains[int(index)] = tuple(value.replace("\\n", "\n").replace("\\\\", "\\") for value in values)
        task = _TASKS.get(info["category"])
        features = tuple(columns[: int(info["n_features"])])
        algorithm, version = info["algo"], float(info["mojo_version"])
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, OSError, EOFError, RuntimeError) as error:
        # A RuntimeError means that a file is encrypted or packed with an unknown method.
        raise CorruptionError(f"The bytes are not a MOJO: {error!r}.", help="Export it again from H2O.") from error
    if task is None or algorithm not in ("gbm", "drf", "glm") or (algorithm != "glm" and version < _OLDEST):
        raise UsageError(
            f"A MOJO of the algorithm '{algorithm}' ({info['category']}, version {version}) is not supported.",
            help="Supported are gbm, drf and glm, for classification and regression, from MOJO version 1.2.",
        )
    if info.get("_genmodel_encoding", "AUTO") not in ("AUTO", "Enum") or info.get("endianness") != "LITTLE_ENDIAN":
        raise UsageError(
            f"A MOJO with the encoding {info.get('_genmodel_encoding')} is not supported.",
            help="Train it with categorical_encoding AUTO or Enum.",
        )
    if info.get("_orig_projection_array", "null") not in ("null", "[]") or info.get("offset_column", "null") != "null":
        raise UsageError(
            "A MOJO with an offset or a projection of its columns is not supported.", help="Train it without them."
        )
    return Mojo(info=info, features=features, domains=domains, files=files, task=task)


def _sections(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            current = found.setdefault(line[1:-1], [])
        elif line.strip():
            current.append(line)
    return found


def _form(mojo: Mojo) -> CompiledForm:
    try:
        return _linear(mojo) if mojo.info["algo"] == "glm" else _trees(mojo)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise CorruptionError(f"The MOJO is damaged: {error!r}.", help="Export it again from H2O.") from error


def _trees(mojo: Mojo) -> CompiledForm:
    iterations, width = int(mojo.info["n_trees"]), int(mojo.info["n_trees_per_class"])
    classes = len(mojo.classes)
    boosted = mojo.info["algo"] == "gbm"
    outputs = 1 if mojo.task != "multiclass" else classes
    if width not in (1, outputs) or mojo.flag("binomial_double_trees"):
        raise UsageError(
            f"A MOJO with {width} trees per class is not supported.", help="Train it without binomial_double_trees."
        )
    if not 0 <= iterations <= len(mojo.files):
        raise CorruptionError(
            f"The MOJO says that it has {iterations} trees per class, but it has {len(mojo.files)} files.",
            help="Export it again from H2O.",
        )
    trees = []
    for iteration in range(iterations):
        for output in range(outputs):
            blob = mojo.files.get(f"trees/t{output:02d}_{iteration:03d}.bin")
            tree = build_tree(_Reader(blob, mojo).node) if blob else Tree(leaves=[0.0], leaf_counts=[1])
            if not boosted:
                # A forest predicts the mean; with two classes its trees give the probability of the first.
                share = -1.0 / iterations if mojo.task == "binary" else 1.0 / iterations
                tree.leaves = [share * value for value in tree.leaves]
            if iteration == 0 and mojo.task != "multiclass":
                start = float(mojo.info["init_f"]) if boosted else 1.0 if mojo.task == "binary" else 0.0
                tree.leaves = [start + value for value in tree.leaves]
            trees.append(tree)
    objective = ""
    if boosted:
        link = mojo.info.get("link_function", "identity")
        objective = {"binary": "binary sigmoid:1", "multiclass": f"multiclass num_class:{outputs}", "regression": ""}[
            mojo.task
        ]
        if mojo.task == "regression" and link != "identity":
            if link != "log":
                raise UsageError(
                    f"A MOJO with the link {link} is not supported.", help="Supported are identity and log."
                )
            objective = "poisson"
    text = model_text(trees, width=len(mojo.features), outputs=outputs, objective=objective)
    segments = [
        InputSegment(source=index, name=name, ops=(("bounded",),))
        if index not in mojo.domains
        else _codes(index, name, mojo.domains[index])
        for index, name in enumerate(mojo.features)
    ]
    form = TreeForm(Preparation(segments), text, mojo.task)
    return _Shares(form) if mojo.task == "multiclass" and not boosted else form


def _codes(index: int, name: str, domain: tuple[str, ...]) -> InputSegment:
    # H2O treats nulls and unseen categories alike.
    missing = (float(len(domain)),)
    rows = tuple((float(code),) for code in range(len(domain)))
    return InputSegment(source=index, name=name, keys=domain, rows=rows, null=missing, unseen=missing)


class _Shares:
    """A forest whose votes are divided by their sum."""

    def __init__(self, form: TreeForm) -> None:
        self._form = form
        self.name = form.name

    def row(self, values: Sequence[Any]) -> Sequence[float]:
        votes = self._form.row(values)
        total = sum(votes) or 1.0
        return [vote / total for vote in votes]

    def frame(self, frame: pl.DataFrame) -> Array:
        votes = self._form.frame(frame)
        total = votes.sum(axis=1, keepdims=True)
        return votes / np.where(total == 0, 1.0, total)

    def to_files(self) -> Files:
        return self._form.to_files()


class _Reader:
    """Reads the bytes of one tree, node by node.

    A node's number is the offset of its first byte; a negative number is the offset of a leaf.
    """

    def __init__(self, blob: bytes, mojo: Mojo) -> None:
        self._blob, self._domains, self._width = blob, mojo.domains, len(mojo.features)
        self._seen: set[int] = set()

    def node(self, at: int) -> TreeNode:
        if at in self._seen:
            raise CorruptionError("A tree of the MOJO has a cycle.", help="Export it again from H2O.")
        self._seen.add(at)
        try:
            return self._node(at)
        except (struct.error, IndexError) as error:
            raise CorruptionError(
                f"A tree of the MOJO is cut off: {error}", help="Export it again from H2O."
            ) from error

    def _node(self, at: int) -> TreeNode:
        if at < 0:
            return TreeNode(leaf=self._float(-at))
        kind, column = struct.unpack_from("<BH", self._blob, at)
        at += 3
        if column == _LEAF:
            return TreeNode(leaf=self._float(at))
        if column >= self._width:
            raise CorruptionError(
                f"A tree of the MOJO has a split on column {column} of {self._width}.", help="Export it again from H2O."
            )
        direction = self._blob[at]
        at += 1
        nulls_left = direction in (_NA_LEFT, _LEFT)
        equal = kind & 12
        threshold, right_codes, in_range = DOUBLE_MAX, frozenset[int](), None
        if direction != _NA_VS_REST:
            if equal == 0:
                # `x >= split` goes right, so `x <= the next smaller number` goes left.
                threshold = float(np.nextafter(np.float64(self._float(at)), -np.inf))
                at += 4
            else:
                first, bits = 0, 32
                if equal != 8:
                    first, bits = struct.unpack_from("<HI", self._blob, at)
                    at += 6
                    if bits > 8 * (len(self._blob) - at):
                        raise IndexError(f"a set of {bits} categories")
                size = 4 if equal == 8 else (bits + 7) // 8
                mask = self._blob[at : at + size]
                right_codes = frozenset(first + bit for bit in range(bits) if mask[bit >> 3] >> (bit & 7) & 1)
                in_range = range(first, first + bits)
                at += size
        left, right = self._children(kind, at)
        domain = self._domains.get(column)
        if domain is None:
            return TreeNode(feature=column, threshold=threshold, missing_left=nulls_left, left=left, right=right)
        codes: frozenset[int]
        if equal or direction == _NA_VS_REST:
            known = set(range(len(domain)))
            covered = known if in_range is None else known & set(in_range)
            codes = frozenset(covered - right_codes) | (frozenset(known - covered) if nulls_left else frozenset())
        else:
            codes = frozenset(code for code in range(len(domain)) if code <= threshold)
        codes |= {len(domain)} if nulls_left else frozenset()
        return TreeNode(feature=column, categories=codes, left=left, right=right)

    def _children(self, kind: int, at: int) -> tuple[int, int]:
        left_mask = kind & 51
        if left_mask & 16:
            left, right = -at, at + 4
        else:
            width = left_mask + 1
            size = int.from_bytes(self._blob[at : at + width], "little")
            left = at + width
            right = left + size
        return left, (-right if (kind & 0xC0) >> 2 & 16 else right)

    def _float(self, at: int) -> float:
        return float(struct.unpack_from("<f", self._blob, at)[0])


def _linear(mojo: Mojo) -> CompiledForm:
    links = {"gaussian": "identity", "binomial": "logit", "quasibinomial": "logit", "multinomial": "multinomial"}
    family, link = mojo.info["family"], mojo.info["link"]
    if links.get(family) != link:
        raise UsageError(
            f"A MOJO of the family {family} with the link {link} is not supported.",
            help=f"Supported are: {', '.join(f'{name} with {links[name]}' for name in links)}",
        )
    cats, offsets = int(mojo.info["cats"]), [int(part) for part in mojo.numbers("cat_offsets")]
    means, modes, beta = mojo.numbers("num_means"), mojo.numbers("cat_modes"), np.array(mojo.numbers("beta"))
    outputs = len(mojo.classes) if mojo.task == "multiclass" else 1
    weights = beta.reshape(outputs, -1).T
    from_first = 0 if mojo.flag("use_all_factor_levels") else 1
    filled = mojo.flag("mean_imputation")
    segments = []
    for index, name in enumerate(mojo.features):
        if index < cats:
            width = offsets[index + 1] - offsets[index]
            rows = tuple(
                tuple(float(code - from_first == bit) for bit in range(width))
                for code in range(len(mojo.domains[index]))
            )
            missing = rows[int(modes[index])] if filled else None
            segments.append(
                InputSegment(
                    source=index,
                    name=name,
                    width=width,
                    keys=mojo.domains[index],
                    rows=rows,
                    null=missing,
                    unseen=missing,
                )
            )
        else:
            ops: tuple[Op, ...] = (("fill", means[index - cats]),) if filled else (("known",),)
            segments.append(InputSegment(source=index, name=name, ops=ops))
    return LinearForm(Preparation(segments), np.ascontiguousarray(weights[:-1]), weights[-1].copy(), mojo.task)


def _reread(files: Files) -> MojoModel:
    return MojoModel.from_files(files)
