"""Reading a fitted scikit-learn pipeline: which floats it makes of which input.

Imputers and scalers of numbers are read off their attributes, operation by operation. Encoders are *tabulated*: the
fitted encoder itself is asked about every value that it knows, a null and a value that it does not know, so whatever
it does with them is what the table says. Anything that mixes inputs or that is not known here is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError
from everloop.packages.compilation.preprocessing import InputSegment, Op

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import polars as pl

    from everloop.packages.formats.input_tables import TableKind
    from everloop.packages.signature import Signature
    from everloop.training.class_decisions import Rule
    from everloop.training.trained_model import Model, Task

UNSEEN = "\N{REPLACEMENT CHARACTER} never seen in training"
MOST_VALUES = 2000
"""A text column with more distinct values is not tabulated."""

_ENCODERS = {"OneHotEncoder", "OrdinalEncoder", "TargetEncoder"}
_NUMERIC = {"SimpleImputer", "StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler"}


class NotCompilableError(EverloopError):
    """This model has no compiled form; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One float that a number runs through operations to become."""

    source: int
    ops: tuple[Op, ...] = ()
    text: bool = False
    """An input that is no number; only an encoder takes it."""
    single: bool = False
    """Its array is of single precision, and stays so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """One float that is looked up."""

    source: int
    values: dict[Any, float]
    null: float | None
    unseen: float | None


Output = Number | Lookup


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A fitted estimator, how it is asked, and the model that asks it."""

    estimator: Any
    table: TableKind
    task: Task
    order: tuple[int, ...]
    """Where it has each class; empty where it has them in order."""
    model: Model
    rule: Rule | None = None
    """How classes follow from scores, where a wrapper around the estimator says so."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What tabulating needs: the kind of table, its signature, and rows of the training data."""

    table: TableKind
    signature: Signature
    sample: pl.DataFrame

    def start(self) -> list[Output]:
        """Every input as it comes."""
        return [
            Number(
                source=place,
                text=item.type not in ("float", "int", "bool") or self.table.columns[place].pandas == "category",
                single=self.table.columns[place].type == "Float32",
            )
            for place, item in enumerate(self.signature.inputs)
        ]


def split_pipeline(estimator: Any) -> tuple[list[Any], Any]:
    """The preparing steps of a pipeline, nested ones laid out, and the estimator at its end."""
    if not hasattr(estimator, "steps"):
        return [], estimator
    steps = [step for _, step in estimator.steps if step is not None and not isinstance(step, str)]
    inner, last = split_pipeline(steps[-1])
    return [*steps[:-1], *inner], last


def run_steps(steps: Sequence[Any], outputs: list[Output], ground: Ground) -> list[Output]:
    """What the steps make of the outputs before them.

    Raises:
        NotCompilableError: a step is not known, or mixes inputs.
    """
    flat = [inner for step in steps for inner in (_laid_out(step))]
    if any(type(step).__name__ in _ENCODERS for step in flat):
        # From the table to behind the last encoder as one: an imputer before an encoder changes what it is asked.
        at = max(place for place, step in enumerate(flat) if type(step).__name__ in _ENCODERS) + 1
        known = _ENCODERS | _NUMERIC
        strangers = [type(step).__name__ for step in flat[:at] if type(step).__name__ not in known]
        if not strangers:
            outputs = tabulate(flat[:at], outputs, ground)
            flat = flat[at:]
    for step in flat:
        name = type(step).__name__
        if name == "ColumnTransformer":
            outputs = _column_transformer(step, outputs, ground)
        elif name in _NUMERIC:
            outputs = _numeric(step, outputs)
        elif name == "FunctionTransformer" and step.func is None:
            continue
        else:
            raise NotCompilableError(f"a step of it is a {name}")
    return outputs


def segments_of(outputs: Sequence[Output], signature: Signature) -> list[InputSegment]:
    """Neighbours out of the same table become one segment."""
    segments: list[InputSegment] = []
    for output in outputs:
        name = signature.inputs[output.source].name
        if isinstance(output, Number):
            if output.text:
                raise NotCompilableError(f"the text '{name}' reaches the estimator as it is")
            segments.append(InputSegment(source=output.source, name=name, ops=output.ops))
            continue
        keys = tuple(output.values)
        last = segments[-1] if segments else None
        if (
            last is not None
            and last.source == output.source
            and last.keys == keys
            and (last.null is None) == (output.null is None)
            and (last.unseen is None) == (output.unseen is None)
        ):
            segments[-1] = _joined(last, output)
        else:
            segments.append(
                InputSegment(
                    source=output.source,
                    name=name,
                    keys=keys,
                    rows=tuple((output.values[key],) for key in keys),
                    null=None if output.null is None else (output.null,),
                    unseen=None if output.unseen is None else (output.unseen,),
                )
            )
    return segments


def append_op(outputs: Sequence[Output], *ops: Op) -> list[Output]:
    """Further operations at the end of every float."""
    from everloop.packages.compilation.preprocessing import number_reader

    found: list[Output] = []
    for output in outputs:
        if isinstance(output, Number):
            found.append(Number(source=output.source, ops=(*output.ops, *ops), text=output.text, single=output.single))
            continue
        run = number_reader(InputSegment(source=output.source, name="a table's value", ops=tuple(ops)))
        if run is None:
            found.append(output)
            continue

        def after(value: float | None, run: Any = run) -> float | None:
            try:
                return None if value is None else run(value)
            except EverloopError:
                return None

        values = {key: after(value) for key, value in output.values.items()}
        if any(value is None for value in values.values()):
            raise NotCompilableError("a known category is refused later on")
        found.append(
            Lookup(
                source=output.source,
                values={key: value for key, value in values.items() if value is not None},
                null=after(output.null),
                unseen=after(output.unseen),
            )
        )
    return found


def tabulate(steps: Sequence[Any], outputs: list[Output], ground: Ground) -> list[Output]:
    """Ask fitted steps, whose inputs are inputs of the model as they come, about every value of each."""
    import numpy as np

    sources = [_plain_source(output) for output in outputs]
    base = ground.table.cast(ground.sample.head(1))

    def ask(name: str, values: list[Any]) -> np.ndarray[Any, Any]:
        import polars as pl

        frame = pl.concat([base] * len(values))
        dtype = frame.schema[name]
        frame = frame.with_columns(pl.Series(name, values, dtype=dtype))
        from sklearn.utils import _safe_indexing

        rows = _safe_indexing(ground.table.fill(frame), sources, axis=1)
        for step in steps:
            rows = step.transform(rows)
        dense = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
        return np.asarray(dense, dtype=np.float64)

    tables = [_ask_column(place, source, steps, ground, ask) for place, source in enumerate(sources)]
    start = tables[0].base
    found: list[Output] = []
    for at in range(len(start)):
        movers = [table for table in tables if table.moves(at)]
        if len(movers) > 1:
            raise NotCompilableError("an encoder mixes inputs")
        table = movers[0] if movers else tables[0]
        found.append(table.lookup(at))
    # A refusal must stand somewhere, also of an input whose values all give the same.
    kept = {output.source for output in found}
    for table in tables:
        if table.source not in kept and (table.null is None or table.unseen is None):
            raise NotCompilableError("an encoder refuses values of an input that it does not use")
    return found


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What one input's values gave: rows of all outputs."""

    source: int
    base: Any
    keys: list[Any]
    rows: Any
    null: Any
    unseen: Any

    def moves(self, at: int) -> bool:
        import numpy as np

        seen = [*self.rows[:, at], *(row[at] for row in (self.null, self.unseen) if row is not None)]
        return not all(np.array_equal(value, seen[0], equal_nan=True) for value in seen)

    def lookup(self, at: int) -> Lookup:
        return Lookup(
            source=self.source,
            values={key: float(row[at]) for key, row in zip(self.keys, self.rows, strict=True)},
            null=None if self.null is None else float(self.null[at]),
            unseen=None if self.unseen is None else float(self.unseen[at]),
        )


def _ask_column(place: int, source: int, steps: Sequence[Any], ground: Ground, ask: Any) -> _Answers:
    item = ground.signature.inputs[source]
    if item.type not in ("string", "float", "int", "bool"):
        raise NotCompilableError(f"the {item.type} '{item.name}' is encoded")
    values: set[Any] = set(ground.sample[item.name].drop_nulls().unique().to_list()) if item.type == "string" else set()
    for step in steps:
        known = getattr(step, "categories_", None)
        if known is not None and len(known) > place:
            values |= {value.item() if hasattr(value, "item") else value for value in known[place]}
    column = ground.table.columns[source]
    values |= set(column.categories or ())
    fitting: Any = {"string": str, "bool": bool}.get(item.type, (int, float))
    keys: list[Any] = sorted(value for value in values if isinstance(value, fitting) and value == value)
    if item.type in ("int", "float"):
        keys = sorted({float(key) for key in keys})
    if not keys or len(keys) > MOST_VALUES:
        raise NotCompilableError(f"'{item.name}' has {len(keys)} categories")
    strange: Any = UNSEEN if item.type == "string" else (keys[-1] + 1.0 if item.type != "bool" else None)
    asked = [int(key) for key in keys] if item.type == "int" else keys

    def one(value: Any) -> Any:
        try:
            return ask(item.name, [value])[0]
        except Exception:  # whatever the encoder raises: it refuses the value
            return None

    rows = ask(item.name, asked)
    return _Answers(
        source=source,
        base=rows[0],
        keys=keys,
        rows=rows,
        null=one(None),
        unseen=one(int(strange) if item.type == "int" else strange) if strange is not None else None,
    )


def _plain_source(output: Output) -> int:
    if isinstance(output, Lookup) or output.ops:
        raise NotCompilableError("an encoder stands behind other steps")
    return output.source


def _laid_out(step: Any) -> list[Any]:
    if hasattr(step, "steps"):
        return [inner for _, part in step.steps for inner in _laid_out(part)]
    return [] if step is None or isinstance(step, str) else [step]


def _column_transformer(step: Any, outputs: list[Output], ground: Ground) -> list[Output]:
    if step.transformer_weights:
        raise NotCompilableError("its ColumnTransformer has weights")
    found: list[Output] = []
    places = step._transformer_to_input_indices
    for name, transformer, columns in step.transformers_:
        if isinstance(columns, str):
            raise NotCompilableError(f"'{name}' takes a single column as a list of texts")
        chosen = [outputs[place] for place in places.get(name, ())]
        if not chosen or (isinstance(transformer, str) and transformer == "drop"):
            continue
        if isinstance(transformer, str):
            found.extend(chosen)
        else:
            found.extend(run_steps([transformer], chosen, ground))
    return found


def _numeric(step: Any, outputs: list[Output]) -> list[Output]:
    import numpy as np

    name = type(step).__name__
    if any(isinstance(output, Number) and output.text for output in outputs):
        raise NotCompilableError(f"a {name} takes texts")
    if name == "SimpleImputer":
        return _imputed(step, outputs)
    # An array is of single precision if all its columns are; then every operation is cut to it.
    single = all(isinstance(output, Number) and output.single for output in outputs)
    found: list[Output] = []
    for place, output in enumerate(outputs):
        ops: list[Op] = [("finite",)]
        for kind, numbers in _arithmetic(step, name):
            if numbers is None:
                continue
            value = float(np.asarray(numbers)[place])
            value = float(np.float32(value)) if single else value
            ops.append((kind, value))
            if single:
                ops.append(("single",))
        if name == "MinMaxScaler" and step.clip:
            ops.append(("clip", *map(float, step.feature_range)))
        found.extend(append_op([output], *([("single",)] if single else []), *ops))
    return found


def _arithmetic(step: Any, name: str) -> list[tuple[str, Any]]:
    if name == "StandardScaler":
        return [("sub", step.mean_ if step.with_mean else None), ("div", step.scale_ if step.with_std else None)]
    if name == "RobustScaler":
        return [
            ("sub", step.center_ if step.with_centering else None),
            ("div", step.scale_ if step.with_scaling else None),
        ]
    if name == "MaxAbsScaler":
        return [("div", step.scale_)]
    return [("mul", step.scale_), ("add", step.min_)]


def _imputed(step: Any, outputs: list[Output]) -> list[Output]:
    import numpy as np

    statistics = np.asarray(step.statistics_)
    marker = step.missing_values
    if not (isinstance(marker, float) and marker != marker):
        raise NotCompilableError("its SimpleImputer fills something other than nulls")
    if statistics.dtype.kind not in "fiub" or np.isnan(statistics.astype(float)).any():
        raise NotCompilableError("its SimpleImputer drops a column")
    single = [("single",)] if all(isinstance(output, Number) and output.single for output in outputs) else []
    filled = [
        append_op([output], ("finite",), *single, ("fill", float(value)), *single)[0]
        for output, value in zip(outputs, statistics, strict=True)
    ]
    if step.add_indicator:
        filled += append_op([outputs[int(place)] for place in step.indicator_.features_], ("missing",))
    return filled


def _joined(segment: InputSegment, output: Lookup) -> InputSegment:
    def longer(row: tuple[float, ...] | None, value: float | None) -> tuple[float, ...] | None:
        return None if row is None or value is None else (*row, value)

    return InputSegment(
        source=segment.source,
        name=segment.name,
        width=segment.width + 1,
        keys=segment.keys,
        rows=tuple((*row, output.values[key]) for row, key in zip(segment.rows, segment.keys or (), strict=True)),
        null=longer(segment.null, output.null),
        unseen=longer(segment.unseen, output.unseen),
    )
