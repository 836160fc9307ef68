"""H2O's MOJO, read without H2O and without Java: boosted trees (gbm), forests (drf) and linear models (glm).

A MOJO is a zip of a text, `model.ini`, the categories of each column, and one file of bytes a tree. Trees become the
text that LightGBM's library answers in microseconds, weights are multiplied here; so a MOJO is as quick as what
everloop trains. Other algorithms are refused by name. The zip is kept byte for byte, and none of it is code.

Sources: H2O, "MOJO Quick Start"; h2o-genmodel `SharedTreeMojoModel.scoreTree`, `GbmMojoModel`, `DrfMojoModel`,
`GlmMojoModel`. Checked against H2O's own answers.
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
"""The version of the trees' bytes from which they are as read here."""
_MOST_BYTES = 2**30
_LEAF, _NA_VS_REST, _NA_LEFT, _LEFT = 65535, 1, 2, 4


@dataclass(frozen=True, kw_only=True)
class Mojo:
    """What a MOJO says of itself."""

    info: dict[str, str]
    features: tuple[str, ...]
    domains: dict[int, tuple[str, ...]]
    """The categories of columns, by their place; the target's behind those of the features."""
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
    """A MOJO with its columns. See `Model` for what it answers."""

    format = "mojo"

    def __init__(self, blob: bytes, table: TableKind) -> None:
        self._blob, self.table = blob, table
        self.mojo = read_mojo(blob)
        self.task: Task = self.mojo.task
        self.inputs = table.names
        if self.inputs != self.mojo.features:
            raise CorruptionError("The MOJO's columns are not those of its table.", help="Build the package again.")
        self.form = _form(self.mojo)
        # H2O predicts the second class from this threshold on. Source: `GenModel.getPrediction`.
        border = self.mojo.info.get("default_threshold") if self.task == "binary" else None
        self.rule = PLAIN if border is None else Rule(threshold=float(border))

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.form.frame(self.table.cast(frame))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        try:
            answers = [self.form.row([row[name] for name in self.inputs]) for row in rows]
        except KeyError as error:
            raise RequestError(f"Column {error} is missing.") from error
        found = np.array(answers, dtype=np.float64)
        return found if self.task == "multiclass" else found.reshape(len(rows))

    def to_files(self) -> Files:
        state = {"version": 1, "table": self.table.to_json()}
        return {_MODEL: self._blob, _STATE: json.dumps(state, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            return cls(files[_MODEL], TableKind.from_json(json.loads(files[_STATE])["table"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"These files are no MOJO: {error!r}.", help="Build it again.") from error

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
    """Take a MOJO as it is; the example tells the types of its columns.

    Raises:
        UsageError: it is of an algorithm that is not read here, or the example lacks its columns.
    """
    mojo = read_mojo(blob)
    by_name = {column.name: column for column in table.columns}
    absent = [name for name in mojo.features if name not in by_name]
    if absent:
        raise UsageError(
            f"The example lacks the columns {', '.join(map(repr, absent[:8]))}, which the MOJO was trained on.",
            help=f"It has: {', '.join(table.names[:30])}",
        )
    for place, name in enumerate(mojo.features):
        if (place in mojo.domains) != (by_name[name].type == "String"):
            kind = "categories" if place in mojo.domains else "numbers"
            raise UsageError(f"'{name}' holds {kind} in the MOJO, and is {by_name[name].type} in the example.")
    chosen = TableKind(container="polars", columns=tuple(by_name[name] for name in mojo.features))
    return MojoModel(blob, chosen), mojo.classes


def read_mojo(blob: bytes) -> Mojo:
    """Read a MOJO's texts.

    Raises:
        CorruptionError: the bytes are no MOJO.
        UsageError: a MOJO that is not read here.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
                raise CorruptionError(f"The MOJO holds more than {_MOST_BYTES} bytes.")
            files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("_aux.bin")}
        sections = _sections(files["model.ini"].decode())
        info = dict(line.split(" = ", 1) for line in sections["info"] if " = " in line)
        columns = sections["columns"]
        domains = {}
        for line in sections.get("domains", ()):
            place, size, name = re.split(r":? ", line, maxsplit=2)
            values = files[f"domains/{name}"].decode().split("\n")[: int(size)]
            domains[int(place)] = tuple(value.replace("\\n", "\n").replace("\\\\", "\\") for value in values)
        task = _TASKS.get(info["category"])
        features = tuple(columns[: int(info["n_features"])])
        algorithm, version = info["algo"], float(info["mojo_version"])
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, OSError, EOFError, RuntimeError) as error:
        # A RuntimeError is a file that is encrypted, or packed in a way that Python does not know.
        raise CorruptionError(f"The bytes are not a MOJO: {error!r}.") from error
    if task is None or algorithm not in ("gbm", "drf", "glm") or (algorithm != "glm" and version < _OLDEST):
        raise UsageError(
            f"A MOJO of the algorithm '{algorithm}' ({info['category']}, version {version}) is not read.",
            help="These are: gbm, drf and glm, for classes and regression, of MOJO version 1.2 and later.",
        )
    if info.get("_genmodel_encoding", "AUTO") not in ("AUTO", "Enum") or info.get("endianness") != "LITTLE_ENDIAN":
        raise UsageError(f"A MOJO with the encoding {info.get('_genmodel_encoding')} is not read.")
    if info.get("_orig_projection_array", "null") not in ("null", "[]") or info.get("offset_column", "null") != "null":
        raise UsageError("A MOJO with an offset or a projection of its columns is not read.")
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
        raise CorruptionError(f"The MOJO does not hold together: {error!r}.", help="Export it again.") from error


def _trees(mojo: Mojo) -> CompiledForm:
    rounds, width = int(mojo.info["n_trees"]), int(mojo.info["n_trees_per_class"])
    classes = len(mojo.classes)
    boosted = mojo.info["algo"] == "gbm"
    answers = 1 if mojo.task != "multiclass" else classes
    if width not in (1, answers) or mojo.flag("binomial_double_trees"):
        raise UsageError(f"A MOJO with {width} trees a class is not read.")
    if not 0 <= rounds <= len(mojo.files):
        raise CorruptionError(f"The MOJO says that it has {rounds} trees a class, and holds {len(mojo.files)} files.")
    trees = []
    for turn in range(rounds):
        for answer in range(answers):
            blob = mojo.files.get(f"trees/t{answer:02d}_{turn:03d}.bin")
            tree = build_tree(_Reader(blob, mojo).node) if blob else Tree(leaves=[0.0], leaf_counts=[1])
            if not boosted:
                # A forest's answer is a mean; with two classes its trees tell the chance of the first.
                share = -1.0 / rounds if mojo.task == "binary" else 1.0 / rounds
                tree.leaves = [share * value for value in tree.leaves]
            if turn == 0 and mojo.task != "multiclass":
                start = float(mojo.info["init_f"]) if boosted else 1.0 if mojo.task == "binary" else 0.0
                tree.leaves = [start + value for value in tree.leaves]
            trees.append(tree)
    objective = ""
    if boosted:
        link = mojo.info.get("link_function", "identity")
        objective = {"binary": "binary sigmoid:1", "multiclass": f"multiclass num_class:{answers}", "regression": ""}[
            mojo.task
        ]
        if mojo.task == "regression" and link != "identity":
            if link != "log":
                raise UsageError(f"A MOJO with the link {link} is not read.")
            objective = "poisson"
    text = model_text(trees, width=len(mojo.features), outputs=answers, objective=objective)
    segments = [
        InputSegment(source=place, name=name, ops=(("bounded",),))
        if place not in mojo.domains
        else _codes(place, name, mojo.domains[place])
        for place, name in enumerate(mojo.features)
    ]
    form = TreeForm(Preparation(segments), text, mojo.task)
    return _Shares(form) if mojo.task == "multiclass" and not boosted else form


def _codes(place: int, name: str, domain: tuple[str, ...]) -> InputSegment:
    # A null and a category that training never saw are the same to H2O.
    gone = (float(len(domain)),)
    rows = tuple((float(code),) for code in range(len(domain)))
    return InputSegment(source=place, name=name, keys=domain, rows=rows, null=gone, unseen=gone)


class _Shares:
    """Votes of a forest's classes as shares of their sum."""

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
    """The bytes of one tree, read node by node; a node's number is the place of its first byte, -1 and below a leaf."""

    def __init__(self, blob: bytes, mojo: Mojo) -> None:
        self._blob, self._domains, self._width = blob, mojo.domains, len(mojo.features)
        self._seen: set[int] = set()

    def node(self, at: int) -> TreeNode:
        if at in self._seen:
            raise CorruptionError("A tree of the MOJO runs into itself.")
        self._seen.add(at)
        try:
            return self._node(at)
        except (struct.error, IndexError) as error:
            raise CorruptionError(f"A tree of the MOJO ends too soon: {error}") from error

    def _node(self, at: int) -> TreeNode:
        if at < 0:
            return TreeNode(leaf=self._float(-at))
        kind, column = struct.unpack_from("<BH", self._blob, at)
        at += 3
        if column == _LEAF:
            return TreeNode(leaf=self._float(at))
        if column >= self._width:
            raise CorruptionError(f"A tree of the MOJO asks for column {column} of {self._width}.")
        direction = self._blob[at]
        at += 1
        nulls_left = direction in (_NA_LEFT, _LEFT)
        equal = kind & 12
        threshold, right_codes, in_range = DOUBLE_MAX, frozenset[int](), None
        if direction != _NA_VS_REST:
            if equal == 0:
                # `x >= split` goes right, which is `x <= the next smaller` to the left.
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
                held = self._blob[at : at + size]
                right_codes = frozenset(first + bit for bit in range(bits) if held[bit >> 3] >> (bit & 7) & 1)
                in_range = range(first, first + bits)
                at += size
        left, right = self._children(kind, at)
        domain = self._domains.get(column)
        if domain is None:
            return TreeNode(feature=column, threshold=threshold, missing_left=nulls_left, left=left, right=right)
        codes: frozenset[int]
        if equal or direction == _NA_VS_REST:
            known = set(range(len(domain)))
            asked = known if in_range is None else known & set(in_range)
            codes = frozenset(asked - right_codes) | (frozenset(known - asked) if nulls_left else frozenset())
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
        raise UsageError(f"A MOJO of the family {family} with the link {link} is not read.")
    cats, offsets = int(mojo.info["cats"]), [int(part) for part in mojo.numbers("cat_offsets")]
    means, modes, beta = mojo.numbers("num_means"), mojo.numbers("cat_modes"), np.array(mojo.numbers("beta"))
    answers = len(mojo.classes) if mojo.task == "multiclass" else 1
    weights = beta.reshape(answers, -1).T
    from_first = 0 if mojo.flag("use_all_factor_levels") else 1
    filled = mojo.flag("mean_imputation")
    segments = []
    for place, name in enumerate(mojo.features):
        if place < cats:
            width = offsets[place + 1] - offsets[place]
            rows = tuple(
                tuple(float(code - from_first == bit) for bit in range(width))
                for code in range(len(mojo.domains[place]))
            )
            gone = rows[int(modes[place])] if filled else None
            segments.append(
                InputSegment(
                    source=place, name=name, width=width, keys=mojo.domains[place], rows=rows, null=gone, unseen=gone
                )
            )
        else:
            ops: tuple[Op, ...] = (("fill", means[place - cats]),) if filled else (("known",),)
            segments.append(InputSegment(source=place, name=name, ops=ops))
    return LinearForm(Preparation(segments), np.ascontiguousarray(weights[:-1]), weights[-1].copy(), mojo.task)


def _reread(files: Files) -> MojoModel:
    return MojoModel.from_files(files)
