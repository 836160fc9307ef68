"""Build packages: a folder, named by its digest, that holds a model and everything needed to predict with it.

    everloop.json     the manifest (see `package_manifest`)
    model/…           the model in its own format
    compiled/…        a faster form of it, proved equal, if there is one
    example.json      an example request
    answers.json      golden rows with the trained model's predictions (see `golden_rows`)
    requirements.txt  the distributions that prediction needs, pinned
    evaluation.json   the evaluation of the model, if one is given
    contract.toml     the data contract, if one is given

A package exists only if the packaged model has been proved equal to the trained one. Its signature is stored outside of
it, in the record's `trust`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from everloop.errors import CorruptionError, NotFoundError, ParityError, UsageError
from everloop.packages import package_manifest as manifests
from everloop.packages.environment_lock import requirements
from everloop.packages.golden_rows import FILE as GOLDEN_ROWS, record_predictions
from everloop.packages.isolation.isolation_policy import remember
from everloop.packages.package_manifest import COMPILED_FOLDER, MODEL_FOLDER, Manifest, PackageLineage
from everloop.packages.parity import plain_rows, probe, prove, sample_of
from everloop.packages.prediction_cache import CachedModel
from everloop.packages.signature import Input, Signature, input_type
from everloop.packages.time_budget import TimeBudget
from everloop.records import Json, Package, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import polars as pl

    from everloop.packages.time_budget import PackagingProgress
    from everloop.stores import Store
    from everloop.training.evaluation import Evaluation
    from everloop.training.trained_model import Model, Trained

_TOLERANCE = {"lightgbm": 0.0, "linear": 0.0, "torch": 1e-6, "keras": 1e-6}
"""Built-in formats reproduce every bit; others may add in another order or compute in single precision."""


def signature_of(trained: Trained) -> Signature:
    """Return the signature of a trained model, before `probe` has tried nulls and unseen categories."""
    return Signature(
        inputs=tuple(
            Input(name=name, type=input_type(dtype), categories=tuple(map(str, trained.categories.get(name, ()))))
            for name, dtype in trained.features.items()
        ),
        task=trained.task,
        classes=tuple(trained.classes),
        ignored=tuple(trained.dropped),
    )


def build_package(
    trained: Trained,
    *,
    store: Store,
    sample: pl.DataFrame,
    snapshot: Snapshot | str | None = None,
    evaluation: Evaluation | Mapping[str, Json] | None = None,
    contract: str | bytes | None = None,
    code: str | None = None,
    run: str | None = None,
    compile: bool = True,
    lookups: Sequence[str] = (),
    effort: TimeBudget | None = None,
    progress: Callable[[PackagingProgress], None] | None = None,
) -> Package:
    """Package a trained model, prove it equal to the original, compile it if possible, sign it and store it.

    Args:
        sample: rows of the training data; at most 100,000 of them, spread evenly, are compared.
        evaluation: an `Evaluation` or a dict; stored in the package.
        contract: the contract as TOML.
        code: digest of the code that trained the model.
        run: id of the run; leave it out if two runs of the same training should give the same package.
        compile: look for a faster form; see `compilation`.
        lookups: feature views that complete a request; the sample must then have their entity's columns as well.
        effort: how long proving and measuring may take; None allows `PROOF_S` seconds.
        progress: called with a `PackagingProgress` during packaging, if `effort` is None.

    Returns:
        The stored record; the existing one if the same package was built before.

    Raises:
        ParityError: the packaged model predicts something else; the event `parity_failed` records the evidence.
        UsageError: the sample has no rows or lacks an input.
    """
    model = trained.model
    signature = signature_of(trained)
    missing = [name for name in signature.names if name not in sample.columns]
    if missing or not sample.height:
        problem = f"lacks the inputs {', '.join(missing)}" if missing else "has no rows"
        raise UsageError(f"The sample for the package {problem}.", help="Pass rows of the training data.")
    if effort is None:
        effort = TimeBudget(progress=progress)
        effort.report("predicting the first rows", 0, 1)
        # The first prediction may load libraries and compile code, so the time counts from its end.
        model.predict_scores(sample.head(1))
        effort.start()
    full, sample = sample, sample_of(sample, signature)
    # Proving, compiling and recording predict the same rows.
    cached = cast("Model", CachedModel(model))
    signature = probe(cached, _with_ranges(signature, sample), sample)
    model_files = model.to_files()

    from everloop.training.trained_model import model_from_files

    try:
        parity = prove(
            cached,
            model_from_files(model.format, model_files),
            signature,
            sample,
            tolerance=_TOLERANCE.get(model.format, 1e-9),
            effort=effort,
        )
    except ParityError as error:
        evidence = {"format": model.format, "message": error.message, "sample_rows": sample.height, "run": run}
        store.records.append_event("parity_failed", "package", run or "", data=evidence)
        raise
    files = {f"{MODEL_FOLDER}{name}": data for name, data in model_files.items()}
    proof = parity.to_json()
    compiled = False
    if compile:
        from everloop.packages.compilation.selection import compile_model

        compilation = compile_model(cached, signature, sample, effort)
        compiled = compilation.model is not None
        proof |= compilation.evidence
        if compilation.model is not None:
            files |= {f"{COMPILED_FOLDER}{name}": data for name, data in compilation.model.to_files().items()}
    proof["not_tried"] = list(effort.not_tried)
    proof["proof_s"] = effort.seconds
    if getattr(getattr(model, "question", None), "choice", None) == "votes":
        proof["votes"] = True
    request, looked_up = signature, dict[str, Json]()
    if lookups:
        from everloop.packages.feature_lookup import plan_lookups

        request, looked_up = plan_lookups(store, lookups, signature, full)
    files["example.json"] = _example(request, full.select(request.names))
    files[GOLDEN_ROWS] = record_predictions(cached, signature, sample)
    environment = manifests.environment(model.format, _libraries(model))
    files["requirements.txt"] = requirements(environment.locked)
    if evaluation is not None:
        files["evaluation.json"] = _json(plain_evaluation(evaluation))
    if contract is not None:
        files["contract.toml"] = contract.encode() if isinstance(contract, str) else contract
    manifest = Manifest(
        format=model.format,
        target=trained.target,
        signature=request.to_json(),
        lookups=looked_up,
        files={name: digest_of(data) for name, data in files.items()},
        lineage=PackageLineage(
            run=run, snapshot=snapshot.key if isinstance(snapshot, Snapshot) else snapshot, code=code
        ),
        environment=environment,
        training=_training(trained),
        compiled=compiled,
    )
    return _add_package(store, manifest, files, proof)


def get_package(store: Store, digest: str) -> Package:
    """Return the record of a package.

    Raises:
        NotFoundError: no package has this digest.
    """
    found = store.records.find(Package, ("digest", "=", digest), limit=1)
    if not found:
        raise NotFoundError(f"There is no package {digest}.", help="See: everloop models ls")
    return found[0]


def read_package(
    store: Store, digest: str, *, trust: Mapping[str, str] | None = None
) -> tuple[Manifest, dict[str, bytes]]:
    """Read the manifest and the files of a package, and check every byte against its digest.

    Args:
        trust: the signature of the package; None takes the one in the package's record.

    Raises:
        NotFoundError: the store does not have the package.
        CorruptionError: the package is damaged.
        TrustError: it contains code and is not signed by a key that this machine trusts.
    """
    entries = {entry.path: entry for entry in store.objects.tree(digest)}
    if manifests.FILE not in entries:
        raise NotFoundError(f"{digest} is not a package: it has no {manifests.FILE}.", help="See: everloop models ls")
    manifest = Manifest.from_bytes(store.objects.read_entry(entries[manifests.FILE]))
    if manifest.code_bearing:
        _check_trust(store, digest, trust)
        manifest.check_python()
    missing = sorted(set(manifest.files) - set(entries))
    if missing:
        raise NotFoundError(f"The file {missing[0]} is missing in the package {digest}.", help="Run: everloop verify")
    files = {name: store.objects.read_entry(entries[name]) for name in manifest.files}
    for name, data in files.items():
        if digest_of(data) != manifest.files[name]:
            raise CorruptionError(
                f"The file {name} of the package {digest} differs from its digest.", help="Run: everloop verify"
            )
    return manifest, files


def read_folder(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Read the manifest and the files of a package in a folder, and check each file against the manifest.

    Raises:
        NotFoundError: the folder is not a package, or a file is missing.
        CorruptionError: a file differs from its digest in the manifest.
    """
    try:
        manifest = Manifest.from_bytes((folder / manifests.FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"'{folder}' is not a package: it has no {manifests.FILE}.",
            help="Name a folder that `everloop models export` wrote.",
        ) from None
    root = folder.resolve()
    files: dict[str, bytes] = {}
    for name, digest in manifest.files.items():
        path = (folder / name).resolve()
        if not path.is_relative_to(root):
            raise CorruptionError(f"The package '{folder}' names a file outside of itself: {name}.")
        try:
            files[name] = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise NotFoundError(
                f"The file {name} is missing in the package '{folder}'.", help="Export the package again."
            ) from None
        if digest_of(files[name]) != digest:
            raise CorruptionError(
                f"The file {name} of the package '{folder}' differs from its digest.", help="Export the package again."
            )
    return manifest, files


def _add_package(store: Store, manifest: Manifest, files: Mapping[str, bytes], parity: dict[str, Json]) -> Package:
    with tempfile.TemporaryDirectory(prefix="everloop-package-") as folder:
        contents = {**files, manifests.FILE: manifest.to_bytes()}
        digest = store.objects.add_tree(write_files(Path(folder, "package"), contents))
    from everloop.stores.trust import sign

    remember(digest, store)
    with store.records.transaction():
        found = store.records.find(Package, ("digest", "=", digest), limit=1)
        if found:
            return found[0]
        package = store.new(
            Package,
            digest=digest,
            format=manifest.format,
            signature=manifest.signature,
            size_bytes=sum(len(data) for data in files.values()) + len(manifest.to_bytes()),
            compiled=manifest.compiled,
            parity=parity,
            trust=sign(digest),
        )
        store.records.put(package, verb="packaged")
    return package


def _check_trust(store: Store, digest: str, trust: Mapping[str, str] | None) -> None:
    from everloop.stores.trust import check

    if trust is None:
        found = store.records.find(Package, ("digest", "=", digest), limit=1)
        trust = found[0].trust if found else None
    check(digest, dict(trust) if trust else None)


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files by name into a folder, which is created."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        # Independent of the umask, because the mode is part of a tree's digest.
        path.chmod(0o644)
    return folder


def digest_of_files(files: Mapping[str, bytes]) -> str:
    """Return the digest that a package of these files, including its manifest, has in every store."""
    from everloop.stores.objects.content_addressing import ContentStore

    with tempfile.TemporaryDirectory(prefix="everloop-digest-") as folder:
        return ContentStore(Path(folder, "objects")).add_tree(write_files(Path(folder, "package"), files))


def plain_evaluation(evaluation: Evaluation | Mapping[str, Json] | None) -> dict[str, Json]:
    """Return an evaluation as plain data; empty for None."""
    if evaluation is None:
        return {}
    return dict(evaluation) if isinstance(evaluation, Mapping) else evaluation.to_dict()


def _with_ranges(signature: Signature, sample: pl.DataFrame) -> Signature:
    """Return the signature with the range of each numeric input in the sample."""
    inputs = []
    for item in signature.inputs:
        if item.type in ("float", "int"):
            values = sample[item.name].drop_nulls()
            values = values.filter(values.is_finite()) if values.dtype.is_float() else values
            if len(values):
                item = replace(item, low=float(values.min()), high=float(values.max()))  # type: ignore[arg-type]
        inputs.append(item)
    return replace(signature, inputs=tuple(inputs))


def _libraries(model: object) -> tuple[str, ...]:
    """Return the distributions that define the classes of an estimator, or of all members of a composite model."""
    members = getattr(model, "parts", ())
    if members:
        found = {name for part in members for name in (*_libraries(part), *manifests.needs(part.format))}
        return tuple(sorted(found))
    estimator = getattr(model, "estimator", None)
    if estimator is None:
        return ()
    named = {"sklearn": "scikit-learn"}
    packages = {type(part).__module__.partition(".")[0] for part in _parts(estimator)}
    return tuple(sorted({named.get(package, package) for package in packages} - {"builtins", "__main__"}))


def _parts(estimator: Any) -> list[Any]:
    inner = [step for _, step in getattr(estimator, "steps", ())] + [
        entry[1] for entry in getattr(estimator, "transformers_", ())
    ]
    return [estimator, *(part for step in inner for part in _parts(step) if not isinstance(step, str))]


def _training(trained: Trained) -> dict[str, Json]:
    # Times and the leaderboard differ from run to run, so they belong to the run and not to the package.
    described = trained.to_dict()
    names = ("recipe", "metric", "dropped", "notes", "rows", "importance")
    return {name: described[name] for name in names if name in described}


def _example(signature: Signature, sample: pl.DataFrame) -> bytes:
    return _json({"rows": plain_rows(sample.head(1), signature)})


def _json(value: Any) -> bytes:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2) + b"\n"


def digest_of(data: bytes) -> str:
    """Return the digest of a file's bytes as a manifest writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
