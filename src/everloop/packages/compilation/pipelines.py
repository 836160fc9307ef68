"""Read a fitted scikit-learn pipeline: which floats it computes from which input.

Imputers and scalers of numbers are read from their attributes, operation by operation. Encoders are *tabulated*: the
fitted encoder transforms every value that it knows, a null and an unknown value, and a table records the results. Steps
that mix inputs or are not supported raise `NotCompilableError`.
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
    """This model cannot be compiled; the message gives the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One float that operations compute from a number."""

    source: int
    ops: tuple[Op, ...] = ()
    text: bool = False
    """The input is not a number, so only an encoder can take it."""
    single: bool = False
    """Its array has single precision, also after each operation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """One float that a table looks up."""

    source: int
    values: dict[Any, float]
    null: float | None
    unseen: float | None


Output = Number | Lookup


@dataclass(frozen=True, kw_only=True)
class CompilationSource:
    """What is compiled: a fitted estimator with its table and task, and the model that wraps it."""

    estimator: Any
    table: TableKind
    task: Task
    order: tuple[int, ...]
    """Index at which the estimator has each class; empty if they are in order."""
    model: Model
    rule: Rule | None = None
    """How classes follow from scores, if a wrapper around the estimator determines it."""


@dataclass(frozen=True, kw_only=True)
class InputContext:
    """The inputs of a pipeline: the kind of table, the signature, and rows of the training data."""

    table: TableKind
    signature: Signature
    sample: pl.DataFrame

    def outputs(self) -> list[Output]:
        """Return every input unchanged, as the first step of a pipeline gets it."""
        return [
            Number(
                source=index,
                text=item.type not in ("float", "int", "bool") or self.table.columns[index].pandas == "category",
                single=self.table.columns[index].type == "Float32",
            )
            for index, item in enumerate(self.signature.inputs)
        ]


def split_pipeline(estimator: Any) -> tuple[list[Any], Any]:
    """Return the preprocessing steps of a pipeline, with nested pipelines flattened, and the estimator at its end."""
    if not hasattr(estimator, "steps"):
        return [], estimator
    steps = [step for _, step in estimator.steps if step is not None and not isinstance(step, str)]
    inner, last = split_pipeline(steps[-1])
    return [*steps[:-1], *inner], last


def run_steps(steps: Sequence[Any], outputs: list[Output], context: InputContext) -> list[Output]:
    """Return the outputs of the steps, given the outputs before them.

    Raises:
        NotCompilableError: a step is not supported, or mixes inputs.
    """
    flat = [inner for step in steps for inner in (_flattened(step))]
    if any(type(step).__name__ in _ENCODERS for step in flat):
        # All steps up to the last encoder are tabulated together, because an imputer changes what an encoder gets.
        end = max(index for index, step in enumerate(flat) if type(step).__name__ in _ENCODERS) + 1
        known = _ENCODERS | _NUMERIC
        if all(type(step).__name__ in known for step in flat[:end]):
            outputs = tabulate(flat[:end], outputs, context)
            flat = flat[end:]
    for step in flat:
        name = type(step).__name__
        if name == "ColumnTransformer":
            outputs = _column_transformer(step, outputs, context)
        elif name in _NUMERIC:
            outputs = _numeric(step, outputs)
        elif name == "FunctionTransformer" and step.func is None:
            continue
        else:
            raise NotCompilableError(f"one of its steps is a {name}")
    return outputs


def segments_of(outputs: Sequence[Output], signature: Signature) -> list[InputSegment]:
    """Convert outputs to segments; neighbouring outputs of the same table become one segment."""
    segments: list[InputSegment] = []
    for output in outputs:
        name = signature.inputs[output.source].name
        if isinstance(output, Number):
            if output.text:
                raise NotCompilableError(f"the text '{name}' reaches the estimator without an encoder")
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
    """Append operations to every output."""
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


def tabulate(steps: Sequence[Any], outputs: list[Output], context: InputContext) -> list[Output]:
    """Record the results of fitted steps for every value of every input; the steps take inputs unchanged."""
    import numpy as np

    sources = [_plain_source(output) for output in outputs]
    base = context.table.cast(context.sample.head(1))

    def transform(name: str, values: list[Any]) -> np.ndarray[Any, Any]:
        import polars as pl

        frame = pl.concat([base] * len(values))
        dtype = frame.schema[name]
        frame = frame.with_columns(pl.Series(name, values, dtype=dtype))
        from sklearn.utils import _safe_indexing

        rows = _safe_indexing(context.table.fill(frame), sources, axis=1)
        for step in steps:
            rows = step.transform(rows)
        dense = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
        return np.asarray(dense, dtype=np.float64)

    tables = [_tabulate_input(index, source, steps, context, transform) for index, source in enumerate(sources)]
    width = len(tables[0].base)
    found: list[Output] = []
    for at in range(width):
        varying = [table for table in tables if table.varies(at)]
        if len(varying) > 1:
            raise NotCompilableError("an encoder mixes inputs")
        table = varying[0] if varying else tables[0]
        found.append(table.lookup(at))
    # If the values of an input do not change the result, no table is left to refuse its nulls or unseen values.
    used = {output.source for output in found}
    for table in tables:
        if table.source not in used and (table.null is None or table.unseen is None):
            raise NotCompilableError("an encoder refuses values of an input that it does not use")
    return found


@dataclass(frozen=True, kw_only=True)
class _InputTable:
    """The results of the steps for the values of one input: a row of all outputs for each value."""

    source: int
    base: Any
    keys: list[Any]
    rows: Any
    null: Any
    unseen: Any

    def varies(self, at: int) -> bool:
        """Whether the output at this index depends on the input."""
        import numpy as np

        results = [*self.rows[:, at], *(row[at] for row in (self.null, self.unseen) if row is not None)]
        return not all(np.array_equal(value, results[0], equal_nan=True) for value in results)

    def lookup(self, at: int) -> Lookup:
        return Lookup(
            source=self.source,
            values={key: float(row[at]) for key, row in zip(self.keys, self.rows, strict=True)},
            null=None if self.null is None else float(self.null[at]),
            unseen=None if self.unseen is None else float(self.unseen[at]),
        )


def _tabulate_input(
    index: int, source: int, steps: Sequence[Any], context: InputContext, transform: Any
) -> _InputTable:
    item = context.signature.inputs[source]
    if item.type not in ("string", "float", "int", "bool"):
        raise NotCompilableError(f"'{item.name}' is encoded, which is not supported for the type {item.type}")
    values: set[Any] = (
        set(context.sample[item.name].drop_nulls().unique().to_list()) if item.type == "string" else set()
    )
    for step in steps:
        known = getattr(step, "categories_", None)
        if known is not None and len(known) > index:
            values |= {value.item() if hasattr(value, "item") else value for value in known[index]}
    column = context.table.columns[source]
    values |= set(column.categories or ())
    fitting: Any = {"string": str, "bool": bool}.get(item.type, (int, float))
    keys: list[Any] = sorted(value for value in values if isinstance(value, fitting) and value == value)
    if item.type in ("int", "float"):
        keys = sorted({float(key) for key in keys})
    if not keys or len(keys) > MOST_VALUES:
        raise NotCompilableError(f"'{item.name}' has {len(keys)} categories")
    unseen: Any = UNSEEN if item.type == "string" else (keys[-1] + 1.0 if item.type != "bool" else None)
    inputs = [int(key) for key in keys] if item.type == "int" else keys

    def transform_one(value: Any) -> Any:
        try:
            return transform(item.name, [value])[0]
        except Exception:  # any error of the encoder means that it refuses the value
            return None

    rows = transform(item.name, inputs)
    return _InputTable(
        source=source,
        base=rows[0],
        keys=keys,
        rows=rows,
        null=transform_one(None),
        unseen=transform_one(int(unseen) if item.type == "int" else unseen) if unseen is not None else None,
    )


def _plain_source(output: Output) -> int:
    if isinstance(output, Lookup) or output.ops:
        raise NotCompilableError("an encoder follows other steps")
    return output.source


def _flattened(step: Any) -> list[Any]:
    if hasattr(step, "steps"):
        return [inner for _, part in step.steps for inner in _flattened(part)]
    return [] if step is None or isinstance(step, str) else [step]


def _column_transformer(step: Any, outputs: list[Output], context: InputContext) -> list[Output]:
    if step.transformer_weights:
        raise NotCompilableError("its ColumnTransformer has weights")
    found: list[Output] = []
    indices = step._transformer_to_input_indices
    for name, transformer, columns in step.transformers_:
        if isinstance(columns, str):
            raise NotCompilableError(f"'{name}' takes a single column as a list of texts")
        chosen = [outputs[index] for index in indices.get(name, ())]
        if not chosen or (isinstance(transformer, str) and transformer == "drop"):
            continue
        if isinstance(transformer, str):
            found.extend(chosen)
        else:
            found.extend(run_steps([transformer], chosen, context))
    return found


def _numeric(step: Any, outputs: list[Output]) -> list[Output]:
    import numpy as np

    name = type(step).__name__
    if any(isinstance(output, Number) and output.text for output in outputs):
        raise NotCompilableError(f"a {name} takes a column that is not a number")
    if name == "SimpleImputer":
        return _imputed(step, outputs)
    # An array has single precision if all its columns have; then every operation is rounded to it.
    single = all(isinstance(output, Number) and output.single for output in outputs)
    found: list[Output] = []
    for index, output in enumerate(outputs):
        ops: list[Op] = [("finite",)]
        for kind, numbers in _arithmetic(step, name):
            if numbers is None:
                continue
            value = float(np.asarray(numbers)[index])
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
        filled += append_op([outputs[int(index)] for index in step.indicator_.features_], ("missing",))
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
