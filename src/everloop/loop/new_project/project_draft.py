"""Draft a project for a user's own table: choose a task, metric and limit for its target, and write its `loop.py`."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from everloop.data.disguised_columns import column_code, quoted
from everloop.errors import DataError
from everloop.loop.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from everloop.loop.new_project.table_inspection import TableInspection
    from everloop.records import Json
    from everloop.training.trained_model import Task

RARE = 5
"""Classes with fewer rows are left out: they may be missing from a part of the split."""
UNBALANCED = 0.05
"""If the positive class has a smaller share than this, `average_precision` is used instead of `roc_auc`."""
MINORITY = 0.4
"""Of two texts of which neither says no, a class with a smaller share than this is the positive one."""
_NO = re.compile(
    r"^(no|n|nein|non|nee|nej|nie|não|ne|нет|false|f|negative|neg|none|never|off|0)$|^(no|not|non|kein|nicht)\b|^non-",
    re.IGNORECASE,
)
"""Texts that say that something is not the case."""
_TAKEN = {"el", "pl", "loop", "prepare", *STAGES}
_WIDTH = 110


@dataclass(frozen=True)
class Goal:
    """What a model has to predict, and how it is judged."""

    task: Task
    classes: tuple[Json, ...]
    metric: str
    bar: float
    """Limit of the `AtLeast` gate."""
    says: str
    """Description of the target, in one line."""
    why_metric: str
    why_bar: str
    rare: tuple[Json, ...] = ()
    """Classes that are left out because they have too few rows."""
    positive: str | None = None
    """The positive class of two texts, if it is not the later one."""


def find_goal(inspection: TableInspection) -> Goal:
    """Choose the task, the metric and its limit for a table's target.

    Raises:
        DataError: nothing can be learned: the target has one value only, too many classes, too few rows or a type that
            cannot be predicted.
    """
    import polars as pl

    from everloop.errors import TrainingError
    from everloop.training.targets import find_classes, infer_task

    values = inspection.rows[inspection.target].drop_nulls()
    try:
        task = infer_task(values)
    except TrainingError as error:
        raise DataError(error.message, help=error.help) from error
    if task == "regression":
        _check_rows(inspection, len(values))
        mean = values.cast(pl.Float64).mean()
        says = f"an amount, {_number(values.min())} to {_number(values.max())}, {_number(mean)} on average"
        why_metric = "1 is perfect and 0 is always predicting the mean"
        return Goal(task, (), "r2", 0.0, says, why_metric, "better than the mean")
    counts = values.cast(pl.String).value_counts(sort=True)
    rare = [row[0] for row in counts.iter_rows() if row[1] < RARE]
    kept = values.filter(~values.cast(pl.String).is_in(rare)) if rare else values
    if kept.n_unique() < 2:
        named, rows = counts.row(-1)
        raise DataError(
            f"'{inspection.target}' is {named!r} in {rows} of {len(values):,} rows, which are too few to learn from.",
            help=f"Collect at least {RARE} rows of each of two values.",
        )
    _check_rows(inspection, len(kept))
    task = "binary" if kept.n_unique() == 2 else task
    positive = _positive(kept) if task == "binary" else None
    classes = tuple(find_classes(kept, task, positive))
    left_out = tuple(one for one in find_classes(values, "multiclass") if one not in classes) if rare else ()
    shares = ", ".join(f"{value!r} {rows / len(kept):.0%}" for value, rows in counts.head(5).iter_rows())
    if task == "multiclass":
        says = f"one of {len(classes)} classes ({shares}{', …' if len(classes) > 5 else ''})"
        return Goal(
            task, classes, "roc_auc", 0.55, says, "0.5 is guessing and 1 is perfect", "better than guessing", left_out
        )
    share = int((kept.cast(pl.String) == _as_text(kept, classes[1])).sum()) / len(kept)
    says = f"{classes[1]!r} ({share:.1%} of the rows) or {classes[0]!r}"
    if share < UNBALANCED:
        bar = float(f"{2 * share:.1g}")
        why = f"guessing gives {share:.2g}, the share of {classes[1]!r}"
        return Goal(task, classes, "average_precision", bar, says, why, "twice as good as guessing", left_out, positive)
    why = "0.5 is guessing and 1 is perfect"
    return Goal(task, classes, "roc_auc", 0.55, says, why, "better than guessing", left_out, positive)


def _positive(values: pl.Series) -> str | None:
    """The class of two texts that people ask for; None if it is the later one in the alphabet, which is the default.

    It is the one beside a text that says no, such as 'nein' or 'not churned', or else the rarer one.
    """
    import polars as pl

    if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
        return None
    counts = values.cast(pl.String).value_counts(sort=True)
    classes: list[str] = sorted(counts[values.name].to_list())
    negative = [text for text in classes if _NO.search(text.strip())]
    if len(negative) != 1:
        few, rows = counts.row(-1)
        negative = [text for text in classes if text != few] if rows < MINORITY * len(values) else classes[:1]
    return None if negative == classes[:1] else classes[0]


def draft_files(
    name: str, title: str, source: str, options: Mapping[str, Any], inspection: TableInspection, goal: Goal
) -> dict[str, str]:
    """Return the contents of the project's files by their paths in its folder.

    Args:
        name: name of the project, its loop and its endpoint.
        title: name of the source without folder and suffix.
        source: the first argument of `el.read`.
        options: further arguments of `el.read`.
        inspection: the inspected table.
        goal: what the model has to predict, and how it is judged.
    """
    template = files("everloop.cli") / "template"
    step = _step_name(title)

    def filled(file: str) -> str:
        return (template / file).read_text(encoding="utf-8").replace("{{name}}", name)

    return {
        "loop.py": _loop_file(name, step, source, options, inspection, goal),
        "everloop.toml": filled("everloop.toml"),
        "tests/test_loop.py": _test_file(name, step, inspection),
        ".gitignore": filled("gitignore"),
    }


def project_name(text: str) -> str:
    """Make a name for a loop and an endpoint from any text: ASCII letters, digits, `-` and `_`."""
    import unicodedata

    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss")).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-_") or "my-loop"


def _check_rows(inspection: TableInspection, rows: int) -> None:
    from everloop.training.automl import LEAST_ROWS

    # AutoTrain needs LEAST_ROWS after a fifth of the rows has been held out for the test.
    least = LEAST_ROWS * 5 // 4 + 1
    if rows < least:
        raise DataError(
            f"{rows} rows with '{inspection.target}' are too few to train and to test a model.",
            help=f"Collect at least {least}: training needs {LEAST_ROWS}, and a fifth of all rows is held out.",
        )


def _loop_file(
    name: str, step: str, source: str, options: Mapping[str, Any], inspection: TableInspection, goal: Goal
) -> str:
    arguments = "".join(f", {option}={_value(value)}" for option, value in options.items())
    fewer = inspection.doubles or inspection.untimed
    rows = f"{inspection.rows.height:,} rows{' after the filters of `prepare`' if fewer else ''}"
    return f'''"""{name}: predicts {_doc(inspection.target)}, {_doc(goal.says)}.

Run it once with `everloop run`, and keep it running with `everloop up`.
"""

import everloop as el
import polars as pl


@el.step
def {step}() -> pl.LazyFrame:
    """The rows as they arrive: {rows} when this project was created."""
    return el.read({quoted(source)}{arguments})


@el.step
def prepare({step}: pl.DataFrame) -> pl.DataFrame:
    """The table that the model learns from. New features go here, in plain Polars."""
    {_prepare_body(step, inspection, goal)}


loop = el.Loop(
    {quoted(name)},
    data=el.Dataset(
        prepare,
{_dataset_lines(inspection, goal)}
    ),
    # Judged by {goal.metric}: {_comment(goal.why_metric)}. With a larger budget, more settings are tried.
    train=el.AutoTrain(metric={quoted(goal.metric)}, budget_s=20),
    gates=[
        el.AtLeast({quoted(goal.metric)}, {goal.bar:g}),  # {goal.why_bar}; raise it once you know what is possible
        el.NotWorseThan("champion"),
        el.Latency(p99_ms=50),
    ],
    serve=el.Endpoint({quoted(name)}, rollout=el.Canary(steps=[10, 50, 100])),
    # labels_after: how long after a prediction the true value of "{_comment(inspection.target)}" is known.
    watch=[el.Drift(alarms_per_month=1), el.Performance({quoted(goal.metric)}, labels_after="1d")],
    retrain=[el.OnDrift(), el.OnNewData()],
)
'''


def _prepare_body(step: str, inspection: TableInspection, goal: Goal) -> str:
    calls: list[list[str]] = []
    if inspection.renamed:
        pairs = ", ".join(f"{quoted(old)}: {quoted(new)}" for old, new in inspection.renamed.items())
        calls.append([f".rename({{{pairs}}})"])
    if inspection.doubles:
        calls.append(["# Repeated rows could be on both sides of the split.", ".unique(maintain_order=True)"])
    if dropped := inspection.of("dropped"):
        names = [f"    {quoted(one.name)},  # {_comment(one.message.removesuffix(': dropped'))}" for one in dropped]
        calls.append([".drop(", *names, ")"])
    casts = [
        line
        for one in inspection.columns
        if one.conversion is not None and one.treatment in ("feature", "target", "time")
        for line in (f"    # {_comment(one.message)}", f"    {one.conversion.code},")
    ]
    if casts:
        calls.append([".with_columns(", *casts, ")"])
    if inspection.untimed and inspection.time is not None:
        calls.append(
            [f".filter({column_code(inspection.time)}.is_not_null())  # {inspection.untimed:,} rows have no time"]
        )
    if goal.rare:
        named = _comment(", ".join(repr(one) for one in goal.rare[:5]))
        code = column_code(inspection.target)
        calls.append(
            [f"# Classes with too few rows to learn from: {named}.", f".filter(pl.len().over({code}) >= {RARE})"]
        )
    if not calls:
        return f"return {step}"
    lines = [line for call in calls for line in call]
    if len(calls) == 1 and lines[0].startswith("."):
        return "\n    ".join([f"return {step}{lines[0]}", *lines[1:]])
    return "\n    ".join(["return (", f"    {step}", *(f"    {line}" for line in lines), ")"])


def _dataset_lines(inspection: TableInspection, goal: Goal) -> str:
    lines = [f"target={quoted(inspection.target)},"]
    if goal.positive is not None:
        lines.append(f"positive={quoted(goal.positive)},  # scores are its probabilities")
    if inspection.time is not None:
        lines.append(f"time={quoted(inspection.time)},  # the latest rows are held out for testing")
    if inspection.key is not None:
        lines.append(f"key={quoted(inspection.key)},  # identifies a row; not a feature")
    if excluded := inspection.of("excluded"):
        lines.append("exclude=[")
        lines += [f"    {quoted(one.name)},  # {_comment(one.message)}" for one in excluded]
        lines.append("],")
    return "\n".join(f"        {line}" for line in lines)


def _test_file(name: str, step: str, inspection: TableInspection) -> str:
    unique = "\n    assert table[loop.data.key].is_unique().all()" if inspection.key is not None else ""
    return f'''"""Quick checks of {name} that train no model. Run them with `pytest`."""

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))
os.environ.setdefault("EVERLOOP_PROJECT", str(PROJECT))  # the folder of relative paths in loop.py

from loop import {", ".join(sorted(["loop", "prepare", step]))}


def test_prepared_table_has_the_columns_of_the_loop() -> None:
    table = prepare({step}().collect())
    assert table[loop.data.target].drop_nulls().n_unique() > 1
    assert set(loop.data.exclude) <= set(table.columns){unique}
'''


def _step_name(title: str) -> str:
    plain = re.sub(r"\W+", "_", project_name(title).lower()).strip("_")
    fits = plain.isidentifier() and not keyword.iskeyword(plain) and not keyword.issoftkeyword(plain)
    return plain if fits and plain not in _TAKEN and len(plain) <= 30 else "rows"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{quoted(str(key))}: pl.{item!r}' for key, item in value.items())}}}"
    return repr(value)


def _comment(text: str) -> str:
    """Return a text as a single line of limited length, for a comment."""
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _doc(text: str) -> str:
    """Return a text that cannot end or break a docstring."""
    return _comment(text).replace("\\", "\\\\").replace('"""', "'''").rstrip('"')


def _as_text(values: Any, value: Json) -> str:
    import polars as pl

    text = pl.Series([value], dtype=values.dtype if not values.dtype.is_float() else pl.Float64)
    return str(text.cast(pl.String)[0])


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
