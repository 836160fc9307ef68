"""Registered model versions and their names.

A version is `delays@3`; numbers increase by one and are never reused. An alias is `delays@champion`. Registering the
same package again returns the version that it has, so a step that registers can run twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError, UsageError
from everloop.records import Alias, Json, ModelVersion, Package

if TYPE_CHECKING:
    from everloop.stores import Store
    from everloop.training.evaluation import Evaluation

CHAMPION = "champion"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def register(
    store: Store,
    model_name: str,
    package: Package | str,
    *,
    run: str | None = None,
    snapshot: str | None = None,
    evaluation: Evaluation | Mapping[str, Json] | None = None,
    metrics: Mapping[str, float] | None = None,
    code: str | None = None,
    description: str = "",
    tags: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Register a package as the model's next version, or return the version that it has already.

    Args:
        package: the record or its digest.
        run: id of the run that created it.
        snapshot: key of the snapshot that it was trained on.
        evaluation: an `Evaluation` or its dict; its metrics become the version's unless `metrics` is given.

    Raises:
        UsageError: the model's name is invalid.
        NotFoundError: the store has no such package.
    """
    from everloop.packages.package import get_package, plain_evaluation  # not needed to read versions

    check_model_name(model_name)
    record = package if isinstance(package, Package) else get_package(store, package)
    plain = plain_evaluation(evaluation)
    with store.records.transaction():
        # The transaction is the only writer, so the number cannot be taken between finding and putting.
        same = store.records.find(
            ModelVersion, ("model", "=", model_name), ("package", "=", record.digest), order="-version", limit=1
        )
        if same:
            return same[0]
        version = store.new(
            ModelVersion,
            model=model_name,
            version=next_number(store, model_name),
            package=record.digest,
            run=run,
            snapshot=snapshot,
            metrics=dict(metrics) if metrics is not None else _metrics(plain),
            evaluation=plain,
            signature=record.signature,
            code=code,
            description=description,
            tags=dict(tags or {}),
        )
        store.records.put(version, verb="registered", data={"package": record.digest, "run": run})
    return version


def get_version(store: Store, ref: str) -> ModelVersion:
    """Return the version for `delays@3`, `delays@champion`, `delays` or an id.

    The name alone stands for the champion or, if there is none, for the newest version.

    Raises:
        NotFoundError: there is no such version; the message lists those that exist.
    """
    model, at, which = ref.partition("@")
    if not at:
        if alias := find_alias(store, model, CHAMPION):
            return store.records.get(ModelVersion, alias.version)
        newest = store.records.find(ModelVersion, ("model", "=", model), order="-version", limit=1)
        return newest[0] if newest else store.records.get(ModelVersion, ref)
    if which.isdecimal():
        # By key, which has an index: a model may have thousands of versions.
        found = store.records.find(ModelVersion, ("key", "=", f"{model}@{int(which)}"), limit=1)
        if found:
            return found[0]
    elif alias := find_alias(store, model, which):
        return store.records.get(ModelVersion, alias.version)
    known = store.records.find(ModelVersion, ("model", "=", model), limit=1)
    raise NotFoundError(
        f"No model version '{ref}'. {what_exists(store, model)}",
        help=f"See: everloop models ls {model}" if known else "See: everloop models ls",
    )


def list_versions(store: Store, model: str) -> list[ModelVersion]:
    """Return every version of a model, newest first."""
    return store.records.find(ModelVersion, ("model", "=", model), order="-version")


def find_alias(store: Store, model: str, alias: str) -> Alias | None:
    """Return the alias `model@alias`, or None if it is not set."""
    found = store.records.find(Alias, ("key", "=", f"{model}@{alias}"), limit=1)
    return found[0] if found else None


def check_model_name(name: object) -> None:
    """Raise UsageError if this is not a valid name for a model."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is not a valid name for a model.",
            help="Use letters, digits, '.', '_' and '-', at most 128 characters, beginning with a letter or digit.",
        )


def check_names(model: str, alias: str) -> None:
    """Check that the names form a key `model@alias`.

    Raises:
        UsageError: a name is invalid.
    """
    # Models that were created through MLflow's protocol may have spaces in their names.
    if not model.strip() or len(model) > 256 or not model.isprintable() or any(sign in "@/:" for sign in model):
        raise UsageError(
            f"'{model}' is not a valid name for a model.",
            help="Use letters, digits, '.', '_' and '-', at most 128 characters, beginning with a letter or digit.",
        )
    if not _NAME.fullmatch(alias) or alias.isdecimal():
        raise UsageError(
            f"'{alias}' is not a valid name for an alias.",
            help="Use letters, digits, '.', '_' and '-', but not a number alone.",
        )


def next_number(store: Store, model: str) -> int:
    """Return the number of the model's next version. Call it inside the transaction that puts the version.

    Numbers come from the events, so the number of a deleted version is not used again.
    """
    last, seq = 0, 0
    while events := store.records.events_since(seq, kinds=("model_version",)):
        seq = events[-1].seq
        for event in events:
            name, _, number = event.key.rpartition("@")
            if name == model and number.isdecimal():
                last = max(last, int(number))
    return last + 1


def what_exists(store: Store, model: str) -> str:
    """Describe for an error message which versions and aliases the model has, or which models exist."""
    numbers = [version.version for version in list_versions(store, model)]
    if not numbers:
        models = sorted({version.model for version in store.records.find(ModelVersion, limit=1000)})
        return f"There is no model '{model}'; models: {', '.join(models[:10]) or 'none'}."
    aliases = [alias.name for alias in store.records.find(Alias, ("model", "=", model))]
    span = f"{numbers[-1]}–{numbers[0]}" if len(numbers) > 1 else f"{numbers[0]}"
    return f"Versions: {span}; aliases: {', '.join(sorted(aliases)) or 'none'}."


def _metrics(evaluation: Mapping[str, Json]) -> dict[str, float]:
    """Return the values of an evaluation's metrics, each given as a number or as {value, low, high}."""
    found: dict[str, float] = {}
    metrics = evaluation.get("metrics")
    if isinstance(metrics, Mapping):
        for name, value in metrics.items():
            number = value.get("value") if isinstance(value, Mapping) else value
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                found[name] = float(number)
    return found
