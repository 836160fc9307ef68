"""Imports runs from MLflow: from its SQLite file, or from a tracking server.

A run's id is derived from its MLflow id, so importing again adds only what is new. Artifacts are copied if they are in
a folder of this machine. MLflow stores infinity as the largest float; it becomes infinity again.
"""

from __future__ import annotations

import hashlib
import sqlite3
import sys
import uuid
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from everloop.errors import NotFoundError, SourceError, UnavailableError, UsageError
from everloop.records import Artifact, Experiment, Point, Run, RunState, Source
from everloop.stores.clock import moment_of
from everloop.tracking.journal.journal_frames import text as keepable
from everloop.tracking.journal.last_points import Latest, merge, series_of
from everloop.tracking.run_archive import Imported

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from everloop.stores import Store

_STATES: dict[str, RunState] = {
    "RUNNING": "running",
    "SCHEDULED": "scheduled",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "interrupted",
}
_TABLES = {"experiments", "runs", "metrics", "params", "tags"}
_LARGEST = sys.float_info.max
_PAGE = 1000
_TIMEOUT_S = 30.0
ID_TAG = "mlflow.run_id"


@dataclass(slots=True)
class _MlflowRun:
    """A run as MLflow stores it; times in ms since 1970."""

    id: str
    name: str
    status: str
    start: int | None
    end: int | None
    user: str
    deleted: bool
    experiment: str
    artifacts: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[tuple[str, float, int, int]] = field(default_factory=list)
    """(metric, value, step, time)."""


class _MlflowSource(Protocol):
    """A source of MLflow's runs."""

    def experiments(self) -> dict[str, tuple[str, str]]:
        """Return the experiments: id to (name, artifact location)."""

    def runs(self) -> Iterator[_MlflowRun]: ...


def import_mlflow(store: Store, source: Path | str, *, artifacts: Path | str | None = None) -> Imported:
    """Import all runs of an MLflow SQLite file or tracking server, with their experiments.

    Args:
        source: path of the file (`mlflow.db`), `sqlite:///mlflow.db`, or the `http(s)` URL of a server.
        artifacts: copy the files of runs whose folders are below this one; default: below the folder of the SQLite
            file. Other folders are skipped, as a source may name any folder of this machine. No files are copied from
            a server.

    Raises:
        NotFoundError: there is no such file.
        SourceError: the file is not MLflow's, or the server's responses are not.
        UnavailableError: the server does not respond.
    """
    added: list[str] = []
    known: list[str] = []
    updated: list[str] = []
    notes: list[str] = []
    ids: dict[str, str] = {}
    below = _root(str(source), artifacts)
    with _open_source(str(source)) as mlflow:
        numbers = {key: _experiment(store, *fields) for key, fields in mlflow.experiments().items()}
        for mlflow_run in mlflow.runs():
            run = _run(store, mlflow_run, numbers.get(mlflow_run.experiment), ids)
            ids[mlflow_run.id] = run.id
            files = _folder(mlflow_run.artifacts, below) if below is not None else None
            found = store.records.get_many(Run, [run.id])
            if found and found[0].state not in ("running", "scheduled"):
                known.append(run.id)
                continue
            if not found and mlflow_run.deleted:
                run = replace(run, archived_at=run.ended_at or run.started_at)
            with store.records.transaction():
                if not found:
                    store.records.put(run, verb="imported", data={"from": "mlflow"})
                    fresh = _points(mlflow_run)
                    added.append(run.id)
                else:
                    before = {
                        (p.key, p.step, p.at, repr(p.value)) for p in store.records.read_points(series_of(run.id))
                    }
                    fresh = [p for p in _points(mlflow_run) if (p.key, p.step, p.at, repr(p.value)) not in before]
                    run = replace(run, revision=found[0].revision, archived_at=found[0].archived_at)
                    if run != found[0]:
                        store.records.update(run, data={"from": "mlflow"})
                    (updated if fresh or run != found[0] else known).append(run.id)
                if fresh:
                    store.records.append_points(series_of(run.id), fresh)
            if files is not None:
                notes += _store_files(store, run, files)
    return Imported(added=tuple(added), known=tuple(known), updated=tuple(updated), notes=tuple(notes))


@contextmanager
def _open_source(source: str) -> Iterator[_MlflowSource]:
    if source.startswith(("http://", "https://")):
        import httpx

        with httpx.Client(base_url=source.rstrip("/"), timeout=_TIMEOUT_S) as client:
            yield _Server(client)
        return
    path = _file_path(source)
    if not path.is_file():
        raise NotFoundError(
            f"There is no file '{path}'.", help="Give the path of MLflow's SQLite file, such as mlflow.db."
        )
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_TIMEOUT_S)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables >= _TABLES:
                missing = ", ".join(sorted(_TABLES - tables))
                raise SourceError(f"'{path}' is not an MLflow database: it has no table {missing}.")
            # The file may be untrusted: its schema may not call functions with side effects.
            connection.execute("PRAGMA trusted_schema = OFF")
            yield _SqliteFile(connection)
    except sqlite3.Error as error:
        raise SourceError(f"'{path}' cannot be read as an MLflow database: {error}.") from error


def _file_path(source: str) -> Path:
    return Path(source.removeprefix("sqlite:///").removeprefix("sqlite://")).expanduser().absolute()


class _SqliteFile:
    """A source: MLflow's SQLite file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._read = connection.execute

    def experiments(self) -> dict[str, tuple[str, str]]:
        rows = self._read("SELECT experiment_id, name, artifact_location FROM experiments")
        return {_text(key): (_text(name), _text(location)) for key, name, location in rows}

    def runs(self) -> Iterator[_MlflowRun]:
        rows = self._read(
            # Parents start before their children.
            "SELECT run_uuid, name, status, start_time, end_time, user_id, lifecycle_stage, experiment_id, artifact_uri"
            " FROM runs ORDER BY start_time, run_uuid"
        ).fetchall()
        for key, name, status, start, end, user, stage, experiment, artifact_uri in rows:
            run = _MlflowRun(
                id=_text(key),
                name=_text(name),
                status=_text(status),
                start=start if isinstance(start, int) else None,
                end=end if isinstance(end, int) else None,
                user=_text(user),
                deleted=stage == "deleted",
                experiment=_text(experiment),
                artifacts=_text(artifact_uri),
            )
            for target, table in ((run.params, "params"), (run.tags, "tags")):
                pairs = self._read(f"SELECT key, value FROM {table} WHERE run_uuid = ?", (key,))  # noqa: S608 - a constant name
                target.update((_text(name), _text(value)) for name, value in pairs)
            run.points = [
                (_text(metric), _float(value, is_nan), _int(step), _int(at))
                for metric, value, step, at, is_nan in self._read(
                    "SELECT key, value, step, timestamp, is_nan FROM metrics WHERE run_uuid = ?"
                    " ORDER BY key, step, timestamp",
                    (key,),
                )
            ]
            yield run


class _Server:
    """A source: a tracking server, over MLflow's REST API."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def experiments(self) -> dict[str, tuple[str, str]]:
        self._known = {
            str(one["experiment_id"]): (one["name"], one.get("artifact_location", ""))
            for one in self._pages(
                "experiments", "POST", "experiments/search", {"max_results": _PAGE, "view_type": "ALL"}
            )
        }
        return self._known

    def runs(self) -> Iterator[_MlflowRun]:
        for experiment in self._known:
            query = {
                "experiment_ids": [experiment],
                "max_results": _PAGE,
                "run_view_type": "ALL",
                "order_by": ["attributes.start_time ASC"],
            }
            for one in self._pages("runs", "POST", "runs/search", query):
                info, data = one["info"], one.get("data", {})
                run = _MlflowRun(
                    id=info["run_id"],
                    name=info.get("run_name", ""),
                    status=info.get("status", ""),
                    start=_whole(info.get("start_time")),
                    end=_whole(info.get("end_time")),
                    user=info.get("user_id", ""),
                    deleted=info.get("lifecycle_stage") == "deleted",
                    experiment=experiment,
                    artifacts=info.get("artifact_uri", ""),
                    params=_pairs(data.get("params", ())),
                    tags=_pairs(data.get("tags", ())),
                )
                for metric in data.get("metrics", ()):
                    history = {"run_id": run.id, "metric_key": metric["key"], "max_results": 25_000}
                    for point in self._pages("metrics", "GET", "metrics/get-history", history):
                        value, at = float(point["value"]), int(point.get("timestamp", 0))
                        run.points.append((metric["key"], value, int(point.get("step", 0)), at))
                yield run

    def _pages(self, name: str, method: str, route: str, query: Mapping[str, Any]) -> Iterator[Any]:
        import httpx

        token = ""
        while True:
            content = {**query, **({"page_token": token} if token else {})}
            arguments = {"params": content} if method == "GET" else {"json": content}
            try:
                response = self._client.request(method, f"/api/2.0/mlflow/{route}", **arguments)
                response.raise_for_status()
                body = response.json()
            except httpx.HTTPStatusError as error:
                raise SourceError(f"The MLflow server responded {error.response.status_code} to {route}.") from error
            except httpx.HTTPError as error:
                raise UnavailableError(
                    f"The MLflow server does not respond: {error}.", help="Check its URL, and that it is running."
                ) from error
            except ValueError as error:
                raise SourceError(f"The response to {route} is not JSON, so this is not an MLflow server.") from error
            yield from body.get(name, ())
            token = body.get("next_page_token", "")
            if not token:
                return


def _text(value: object) -> str:
    """Return a column as a string. In a forged file it may have any type."""
    return "" if value is None else value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _float(value: object, is_nan: object) -> float:
    return float(value) if isinstance(value, int | float) and not is_nan else float("nan")


def _whole(value: object) -> int | None:
    return None if value in (None, "") else int(str(value))


def _pairs(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {row["key"]: row.get("value", "") for row in rows}


def _experiment(store: Store, name: str, location: str) -> str | None:
    """Return the number of the experiment with this name, creating it if needed; None for MLflow's Default."""
    name = keepable(name)
    if name == "Default":
        return None
    with store.records.transaction():
        found = store.records.find(Experiment, ("key", "=", name), limit=1)
        if not found:
            last = store.records.find(Experiment, order="-number", limit=1)
            number = max(last[0].number if last else 0, 0) + 1
            found = [
                store.new(Experiment, number=number, name=name, artifacts_at=keepable(location), updated_at=store.now())
            ]
            store.records.put(*found, verb="imported")
    return str(found[0].number)


def _run(store: Store, mlflow_run: _MlflowRun, experiment: str | None, ids: Mapping[str, str]) -> Run:
    tags = {keepable(name): keepable(value or "") for name, value in mlflow_run.tags.items()}
    start = _moment(mlflow_run.start or 0)
    end = None if mlflow_run.end is None else _moment(mlflow_run.end)
    latest: Latest = {}
    merge(latest, ((keepable(key), step, at * 1000, _value(value)) for key, value, step, at in mlflow_run.points))
    return Run(
        id=_id(store.project, mlflow_run),
        project=store.project,
        created_at=start,
        name=keepable(mlflow_run.name or tags.get("mlflow.runName") or "mlflow") or "mlflow",
        state=_STATES.get(mlflow_run.status, "finished"),
        parent=ids.get(tags.get("mlflow.parentRunId", "")),
        started_at=start,
        ended_at=end,
        seconds=None if end is None else (end - start).total_seconds(),
        params={keepable(name): keepable(value) for name, value in mlflow_run.params.items()},
        tags={**tags, ID_TAG: mlflow_run.id},
        metrics={key: value + 0.0 for key, (_, _, value) in latest.items()},
        metric_at={key: (step, at // 1000) for key, (step, at, _) in latest.items()},
        source=Source(git_commit=tags.get("mlflow.source.git.commit")),
        experiment=experiment,
        user=keepable(mlflow_run.user),
    )


def _id(project: str, mlflow_run: _MlflowRun) -> str:
    """Return a UUIDv7 of the run's start time and a digest of its MLflow id, so that it is the same every time."""
    digest = hashlib.sha256(f"{project}\0{mlflow_run.id}".encode()).digest()
    bits = ((mlflow_run.start or 0) & (1 << 48) - 1) << 80 | int.from_bytes(digest[:10], "big")
    bits = bits & ~(0xF << 76) | 7 << 76
    bits = bits & ~(3 << 62) | 2 << 62
    return str(uuid.UUID(int=bits))


def _points(mlflow_run: _MlflowRun) -> list[Point]:
    return [
        Point(key=keepable(key), value=_value(value), step=step, at=_moment(at))
        for key, value, step, at in mlflow_run.points
    ]


def _value(value: float) -> float:
    return float("inf") * (1 if value > 0 else -1) if abs(value) >= _LARGEST else float(value)


def _moment(ms: int) -> datetime:
    try:
        return moment_of(ms * 1000)
    except (OverflowError, ValueError):
        return datetime(1970, 1, 1, tzinfo=UTC)


def _root(source: str, artifacts: Path | str | None) -> Path | None:
    if source.startswith(("http://", "https://")):
        return None
    return _file_path(source).parent.resolve() if artifacts is None else Path(artifacts).expanduser().resolve()


def _folder(uri: str, below: Path) -> Path | None:
    """Return the folder that a URI names, if it is on this machine and inside `below`."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or not parts.path or parts.netloc not in ("", "localhost"):
        return None
    path = below / (unquote(parts.path) if parts.scheme else uri)
    return path if path.resolve().is_relative_to(below) and path.is_dir() else None


def _store_files(store: Store, run: Run, folder: Path) -> list[str]:
    """Store each file and folder directly in a run's folder as an artifact, unless it is already stored."""
    known = {artifact.name: artifact.digest for artifact in store.records.find(Artifact, ("run", "=", run.id))}
    notes = []
    for entry in sorted(folder.iterdir()):
        try:
            if entry.is_symlink():
                raise UsageError("it is a symbolic link")
            if entry.is_dir():
                form, digest = "tree", store.objects.add_tree(entry)
                size = sum(one.stat().st_size for one in entry.rglob("*") if one.is_file())
            else:
                form, digest, size = "file", store.objects.add_file(entry), entry.stat().st_size
        except (UsageError, OSError) as error:
            notes.append(f"Skipped '{entry}' of the run {run.id}: {error}")
            continue
        if known.get(keepable(entry.name)) == digest:
            continue
        artifact = store.new(
            Artifact,
            run=run.id,
            name=keepable(entry.name),
            type=form,
            digest=digest,
            size_bytes=size,
            meta={"file": keepable(entry.name)},
        )
        store.records.put(artifact, verb="imported")
    return notes
