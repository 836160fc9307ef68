"""The model card of a version, as markdown: what it is, how good it is, where it comes from and what was decided.

Text that people or data have written (description, tags, names, reasons) is escaped to plain text, because cards are
rendered by pages and tools that follow links, load images and run HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError
from everloop.packages.package import get_package
from everloop.packages.package_manifest import FILE, Manifest
from everloop.records import Alias, GateResult, Json, ModelVersion, Package, Run, Snapshot
from everloop.registry.history import alias_history
from everloop.registry.model_versions import get_version
from everloop.stores.printable import markdown_cell, markdown_code, markdown_text, shell_line
from everloop.training.trained_model import LeftOut

if TYPE_CHECKING:
    from everloop.stores import Store


def version_card(store: Store, ref: str) -> str:
    """Return the card of a version, given as `get_version` takes it: markdown that ends with a line break.

    Raises:
        NotFoundError: there is no such version.
    """
    version = get_version(store, ref)
    parts = [
        f"# {_text(version.key)}",
        markdown_text(version.description.strip()),
        _facts(store, version),
        _metrics(version),
        _gates(store, version),
        _prediction(store, version),
        _left_out(store, version),
        _notes(store, version),
        _signature(version.signature),
        _lineage(store, version),
        _aliases(store, version),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(store: Store, version: ModelVersion) -> str:
    package = _package(store, version)
    rows: list[tuple[str, Json]] = [
        ("State", version.state),
        ("Registered", f"{version.created_at:%Y-%m-%d %H:%M} UTC"),
        ("Task", version.signature.get("task")),
    ]
    if package is not None:
        rows += [
            ("Format", package.format + (", compiled" if package.compiled else "")),
            ("Size", f"{package.size_bytes:,} bytes"),
            ("Package", version.package),
        ]
    rows += [(_Markup(f"Tag {markdown_code(name)}"), value) for name, value in sorted(version.tags.items())]
    return _table(("", ""), [row for row in rows if row[1] not in (None, "")])


def _metrics(version: ModelVersion) -> str:
    intervals = version.evaluation.get("metrics")
    rows = []
    for name, value in sorted(version.metrics.items()):
        known = intervals.get(name) if isinstance(intervals, Mapping) else None
        low, high = (known.get("low"), known.get("high")) if isinstance(known, Mapping) else (None, None)
        between = f"{low:.4g} to {high:.4g}" if isinstance(low, float) and isinstance(high, float) else ""
        rows.append((_Markup(markdown_code(name)), f"{value:.6g}", between))
    return "## Metrics\n\n" + _table(("Metric", "Value", "Confidence interval"), rows) if rows else ""


def _gates(store: Store, version: ModelVersion) -> str:
    gates = store.records.find(GateResult, ("candidate", "=", version.key), order="id")
    rows = [
        (gate.gate, f"{gate.outcome} (warning)" if gate.severity == "warning" else gate.outcome, gate.champion or "",
         gate.message)
        for gate in gates
    ]  # fmt: skip
    return "## Gates\n\n" + _table(("Gate", "Outcome", "Compared with", "Evidence"), rows) if rows else ""


def prediction_facts(package: Package) -> list[tuple[str, Json]]:
    """Return how a package predicts, as (name, value) pairs: its form, the time per row, and how it was verified.

    They also give the reason for each faster form that is not used, and what could not be verified in time.
    """
    if not package.parity:
        return []
    parity = package.parity
    times = parity.get("row_us")
    times = times if isinstance(times, Mapping) else {}
    form = str(parity.get("form") or "original")
    rows: list[tuple[str, Json]] = [
        ("Predicts with", "the original model" if form == "original" else form),
        ("Time per row", " / ".join(f"{name} {micro:,.1f} µs" for name, micro in times.items())),
        ("Verified on", _verified_rows(parity, "compiled_" if parity.get("compiled") else "")),
    ]
    if parity.get("votes"):
        rows.append(("Scores", "1 for the predicted class, 0 for the others: the model gives no probabilities"))
    reasons = parity.get("reasons")
    if isinstance(reasons, Mapping):
        rows += [(f"Form '{name}' not used", reason) for name, reason in reasons.items()]
    untried = parity.get("not_tried")
    if isinstance(untried, Sequence) and untried:
        rows.append((f"Not verified within {parity.get('proof_s', 0):g} s", "; ".join(map(str, untried))))
    return [row for row in rows if row[1]]


def _prediction(store: Store, version: ModelVersion) -> str:
    package = _package(store, version)
    rows = prediction_facts(package) if package is not None else []
    return "## Prediction\n\n" + _table(("", ""), rows) if rows else ""


def left_out(store: Store, version: ModelVersion) -> tuple[LeftOut, ...]:
    """Return the columns of the training data that the model does not use, each with the reason."""
    dropped = _training(store, version).get("dropped") or {}
    return tuple(LeftOut(column=name, reason=str(reason)) for name, reason in dropped.items())


def training_notes(store: Store, version: ModelVersion) -> tuple[str, ...]:
    """Return what training noticed, such as rows that it left out or a score that is suspiciously good."""
    return tuple(map(str, _training(store, version).get("notes") or ()))


def _training(store: Store, version: ModelVersion) -> dict[str, Any]:
    """What the package says about its training; empty if the version has no package here."""
    try:
        entries = {entry.path: entry for entry in store.objects.tree(version.package)} if version.package else {}
    except NotFoundError:
        return {}
    return dict(Manifest.from_bytes(store.objects.read_entry(entries[FILE])).training) if FILE in entries else {}


def _notes(store: Store, version: ModelVersion) -> str:
    notes = training_notes(store, version)
    return "## Notes on training\n\n" + "\n".join(f"- {_text(note)}" for note in notes) if notes else ""


def _left_out(store: Store, version: ModelVersion) -> str:
    rows = [(_Markup(markdown_code(column.column)), column.reason) for column in left_out(store, version)]
    return "## Columns not used\n\n" + _table(("Column", "Reason"), rows) if rows else ""


def _verified_rows(parity: Mapping[str, Json], prefix: str) -> str:
    kinds = {"sample_rows": "training rows", "edge_rows": "edge rows", "threshold_rows": "rows beside splits"}
    counts = [f"{parity[prefix + name]:,} {kind}" for name, kind in kinds.items() if parity.get(prefix + name)]
    worst = parity.get(f"{prefix}largest_difference")
    return ", ".join(counts) + (f"; largest difference {worst:.2g}" if isinstance(worst, float) else "")


def _signature(signature: Mapping[str, Json]) -> str:
    rows = []
    for side in ("inputs", "outputs"):
        for column in signature.get(side) or ():
            if isinstance(column, Mapping):
                categories = column.get("categories")
                known = f"{len(categories)} categories" if isinstance(categories, Sequence) and categories else ""
                nullable = "may be null" if column.get("nullable") else ""
                rows.append(
                    (
                        side[:-1],
                        _Markup(markdown_code(str(column.get("name", "")))),
                        column.get("type", ""),
                        nullable or known,
                    )
                )
    return "## Inputs and outputs\n\n" + _table(("", "Name", "Type", "Values"), rows) if rows else ""


def lineage(store: Store, version: ModelVersion) -> list[tuple[str, Json]]:
    """Return the run, data and code that a version comes from, as (name, value) pairs; unknown ones are left out."""
    runs = store.records.find(Run, ("id", "=", version.run), limit=1) if version.run else []
    snapshots = store.records.find(Snapshot, ("key", "=", version.snapshot), limit=1) if version.snapshot else []
    rows: list[tuple[str, Json]] = [("Run", version.run)]
    for run in runs:
        rows += [("Trigger", run.trigger), ("Command", shell_line(run.source.launch))]
    rows.append(("Snapshot", version.snapshot))
    for data in snapshots:
        rows += [("Rows", f"{data.rows:,}"), ("Data digest", data.digest)]
        if data.starts_at and data.ends_at:
            rows.append(("Data from", f"{data.starts_at:%Y-%m-%d} to {data.ends_at:%Y-%m-%d}"))
    rows.append(("Code", version.code))
    for run in runs:
        source = run.source
        dirty = " with uncommitted changes" if source.git_dirty else ""
        rows += [
            ("Code of the steps", source.code if source.code != version.code else None),
            ("Git commit", source.git_commit and f"{source.git_commit}{dirty}"),
            ("Changes", source.changes),
            ("Python", source.python),
        ]
    return [row for row in rows if row[1]]


def _lineage(store: Store, version: ModelVersion) -> str:
    rows = lineage(store, version)
    return "## Lineage\n\n" + _table(("", ""), rows) if rows else ""


def _aliases(store: Store, version: ModelVersion) -> str:
    rows = []
    for alias in store.records.find(Alias, ("model", "=", version.model), order="name"):
        for tenure in alias_history(store, version.model, alias.name):
            if tenure.version == version.key:
                until = f"{tenure.until:%Y-%m-%d %H:%M}" if tenure.until else "now"
                approved = f", approved by {', '.join(tenure.approved_by)}" if tenure.approved_by else ""
                who = f"{tenure.actor}{approved}"
                rows.append((alias.name, f"{tenure.since:%Y-%m-%d %H:%M}", until, who, tenure.reason))
    return "## Alias history\n\n" + _table(("Alias", "From", "Until", "Set by", "Reason"), rows) if rows else ""


def _package(store: Store, version: ModelVersion) -> Package | None:
    try:
        return get_package(store, version.package)
    except NotFoundError:
        return None


def _table(columns: Sequence[str], rows: Iterable[Sequence[Json]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class _Markup(str):
    """A table cell that is markdown already."""

    __slots__ = ()


def _text(value: Json) -> str:
    """Escape a table cell: no line breaks, no column separators, no markup."""
    return value if isinstance(value, _Markup) else markdown_cell(str(value))
