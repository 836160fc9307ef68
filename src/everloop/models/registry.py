"""Registered model versions and the aliases that move between them.

A version is `delays@3`; numbers rise by one and are never given twice. An alias is `delays@champion`. Registering
the same package again gives the version that it has, so a step that registers can be run twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.models.approvals import ApprovalError, clear_move, find_policy
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
    """Give a package the model's next version number, or return the version that it has already.

    Args:
        package: the record or its digest.
        run: id of the run that made it.
        snapshot: key of the snapshot that it was trained on.
        evaluation: an `Evaluation` or its dict; its metrics become the version's unless `metrics` is given.

    Raises:
        UsageError: the model's name does not make a key.
        NotFoundError: the store has no such package.
    """
    if not _NAME.fullmatch(model_name):
        raise UsageError(
            f"'{model_name}' is no name for a model.", help="Use letters, digits, '.', '_' and '-', at most 128."
        )
    record = package if isinstance(package, Package) else get_package(store, package)
    judged = plain_evaluation(evaluation)
    with store.records.transaction():
        # The transaction is the only writer, so nobody takes the number between finding and putting.
        same = store.records.find(
            ModelVersion, ("model", "=", model_name), ("package", "=", record.digest), order="-version", limit=1
        )
        if same:
            return same[0]
        version = store.new(
            ModelVersion,
            model=model_name,
            version=_last_number(store, model_name) + 1,
            package=record.digest,
            run=run,
            snapshot=snapshot,
            metrics=dict(metrics) if metrics is not None else _metrics(judged),
            evaluation=judged,
            signature=record.signature,
            code=code,
            description=description,
            tags=dict(tags or {}),
        )
        store.records.put(version, verb="registered", data={"package": record.digest, "run": run})
    return version


def get_package(store: Store, digest: str) -> Package:
    """The record of a package by digest.

    Raises:
        NotFoundError: no package has this digest.
    """
    found = store.records.find(Package, ("digest", "=", digest), limit=1)
    if not found:
        raise NotFoundError(f"There is no package {digest}.", help="See: everloop models ls")
    return found[0]


def get_version(store: Store, ref: str) -> ModelVersion:
    """The version that `delays@3`, `delays@champion`, `delays` or an id names.

    The bare name is the champion or, where there is none, the newest version.

    Raises:
        NotFoundError: there is none; the message says which there are.
    """
    model, at, which = ref.partition("@")
    if not at:
        if alias := find_alias(store, model, CHAMPION):
            return store.records.get(ModelVersion, alias.version)
        newest = store.records.find(ModelVersion, ("model", "=", model), order="-version", limit=1)
        return newest[0] if newest else store.records.get(ModelVersion, ref)
    if which.isdecimal():
        found = store.records.find(ModelVersion, ("model", "=", model), ("version", "=", int(which)), limit=1)
        if found:
            return found[0]
    elif alias := find_alias(store, model, which):
        return store.records.get(ModelVersion, alias.version)
    raise NotFoundError(f"No model version '{ref}'. {_existing(store, model)}", help=f"See: everloop models ls {model}")


def list_versions(store: Store, model: str) -> list[ModelVersion]:
    """Every version of a model, newest first."""
    return store.records.find(ModelVersion, ("model", "=", model), order="-version")


def find_alias(store: Store, model: str, alias: str) -> Alias | None:
    """The alias `model@alias`, or None where it was never set or has been removed."""
    found = store.records.find(Alias, ("model", "=", model), ("name", "=", alias), limit=1)
    return found[0] if found else None


_ANYONE = object()
ANYONE: str = _ANYONE  # type: ignore[assignment]
"""The default of `set_alias(expect=…)`: whoever holds it now."""


def set_alias(
    store: Store,
    model: str,
    alias: str,
    version_key: str,
    *,
    reason: str = "",
    evidence: Mapping[str, Json] | None = None,
    expect: str | None = ANYONE,
) -> Alias:
    """Move an alias to a version; an event keeps reason and evidence. Moving it where it is changes nothing.

    Args:
        version_key: key of one of the model's versions, `delays@3`.
        expect: key of the version that must hold the alias now, or None: nobody must. Without it, anybody may.

    Raises:
        ApprovalError: a policy guards the alias, and not enough others have agreed.
        ConflictError: another version holds the alias than was expected, or the version is archived.
        NotFoundError: no such version.
        UsageError: a name that could be taken for a version's number, or a version of another model.
    """
    check_names(model, alias)
    version = get_version(store, version_key)
    if version.model != model:
        raise UsageError(f"'{version.key}' is no version of '{model}'.", help=_existing(store, model))
    with store.records.transaction():
        held = find_alias(store, model, alias)
        holder = held.version if held else None
        if expect is not ANYONE and holder != expect:
            raise ConflictError(
                f"'{model}@{alias}' is held by {holder or 'nobody'}, not by {expect or 'nobody'}.",
                help="Look again and decide anew.",
            )
        if version.state == "archived" and holder != version.key:
            raise ConflictError(
                f"'{version.key}' is archived.", help=f"Take it back first: everloop models unarchive {version.key}"
            )
        if held is not None and holder == version.key:
            return held
        data = {
            "version": version.key,
            "previous": holder,
            "reason": reason,
            "evidence": dict(evidence or {}),
            **clear_move(store, model, alias, version, held),
        }
        if held is None:
            made = store.new(Alias, model=model, name=alias, version=version.key)
            store.records.put(made, verb="alias_set", data=data)
            return made
        return store.records.update(replace(held, version=version.key), verb="alias_set", data=data)[0]


def remove_alias(store: Store, model: str, alias: str, *, reason: str = "") -> None:
    """Take an alias away; its history stays.

    Raises:
        ApprovalError: a policy guards it: lift that first.
        NotFoundError: nobody holds it.
    """
    with store.records.transaction():
        held = find_alias(store, model, alias)
        if held is None:
            raise NotFoundError(f"There is no '{model}@{alias}'. {_existing(store, model)}")
        if find_policy(store, model, alias) is not None:
            raise ApprovalError(
                f"'{model}@{alias}' is guarded by a policy and cannot be removed.",
                help=f"An admin may lift it: everloop models policy {model}@{alias} --approvals 0",
            )
        store.records.delete(Alias, held.id, verb="alias_removed", data={"version": held.version, "reason": reason})


def check_names(model: str, alias: str) -> None:
    """Refuse names that make no key `model@alias`.

    Raises:
        UsageError: one of them does not.
    """
    # Models that came over MLflow's protocol may have spaces in their names, and they exist already.
    if not model.strip() or len(model) > 256 or any(sign in "@/:" or sign < " " for sign in model):
        raise UsageError(
            f"'{model}' is no name for a model.", help="Use letters, digits, '.', '_' and '-', at most 128."
        )
    if not _NAME.fullmatch(alias) or alias.isdecimal():
        raise UsageError(f"'{alias}' is no name for an alias.", help="Use letters, digits, '.', '_' and '-'.")


def next_number(store: Store, model: str) -> int:
    """The number of the model's next version. Ask inside the transaction that puts the version."""
    return _last_number(store, model) + 1


def _last_number(store: Store, model: str) -> int:
    """The highest number that the model ever gave out: a deleted version's name is not given to another."""
    last, seq = 0, 0
    while events := store.records.events_since(seq, kinds=("model_version",)):
        seq = events[-1].seq
        for event in events:
            name, _, number = event.key.rpartition("@")
            if name == model and number.isdecimal():
                last = max(last, int(number))
    return last


def _existing(store: Store, model: str) -> str:
    numbers = [version.version for version in list_versions(store, model)]
    if not numbers:
        models = sorted({version.model for version in store.records.find(ModelVersion, limit=1000)})
        return f"There is no model '{model}'; models: {', '.join(models[:10]) or 'none'}."
    aliases = [alias.name for alias in store.records.find(Alias, ("model", "=", model))]
    span = f"{numbers[-1]}–{numbers[0]}" if len(numbers) > 1 else f"{numbers[0]}"
    return f"Versions: {span}; aliases: {', '.join(sorted(aliases)) or 'none'}."


def plain_evaluation(evaluation: Evaluation | Mapping[str, Json] | None) -> dict[str, Json]:
    """An evaluation as plain data; empty where there is none."""
    if evaluation is None:
        return {}
    return dict(evaluation) if isinstance(evaluation, Mapping) else evaluation.to_dict()


def _metrics(evaluation: Mapping[str, Json]) -> dict[str, float]:
    """The plain values among an evaluation's metrics, which may each be a number or {value, low, high}."""
    found: dict[str, float] = {}
    metrics = evaluation.get("metrics")
    if isinstance(metrics, Mapping):
        for name, value in metrics.items():
            number = value.get("value") if isinstance(value, Mapping) else value
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                found[name] = float(number)
    return found
