"""A job as plain data, for workers on other machines: URLs, names and digests, no live object.

If all parts of the store have URLs, a spec holds no path of this machine. If a part is a file or folder of this
machine, the spec also says where (`local`), and a worker checks that it sees the same before it runs the job.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError
from everloop.pipeline.code.code_bundles import roots_of
from everloop.pipeline.code.step_code import relocatable_digest
from everloop.pipeline.graph_plan import Plan, PlanNode
from everloop.pipeline.plan_inputs import encode_inputs
from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.pipeline.job import Job
    from everloop.records import Json
    from everloop.stores import Store
    from everloop.stores.home import StoreUrls

PARTS = ("records", "objects", "tables")
# Variables that belong to a machine, a login or a virtual environment. Workers keep their own.
_OWN_VARIABLES = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_", "TERM", "TMPDIR", "LANG"}
    | {"VIRTUAL_ENV", "MAIL", "DISPLAY", "LS_COLORS", "COLUMNS", "LINES", "CUDA_VISIBLE_DEVICES", "PS1", "TZ"}
    | {"EVERLOOP_PROJECT", "EVERLOOP_STORE", "EVERLOOP_KEYS", "EVERLOOP_SERVER", "PYTEST_CURRENT_TEST"}
)
_OWN_PREFIXES = ("RAY_", "PYTHON", "LD_", "DYLD_", "LC_", "XDG_", "SSH_", "DBUS_", "CONDA_", "OMP_", "MKL_", "SYSTEMD_")
# These have a meaning only where the project's folder is.
_LOCAL_VARIABLES = ("EVERLOOP_PROJECT", "EVERLOOP_KEYS", "TZ")
# The fields in which the jobs of one step differ.
_OWN_FIELDS = frozenset({"name", "attempt", "inputs", "clock"})


@dataclass(frozen=True, slots=True)
class LocalPaths:
    """What a job uses of the file system of the machine that it comes from."""

    machine: str
    """Identifies the machine and its start."""
    home: str
    parts: dict[str, str]
    """Part of the store to its path, for those that have no URL."""
    folder: str
    """The working directory."""
    search_path: tuple[str, ...]
    modules: dict[str, str]
    """Project module to its file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job. `node` and the digests say what to run, the URLs where its inputs and outputs are."""

    name: str
    run: str
    attempt: int
    node: PlanNode
    inputs: dict[str, Json]
    """Input to its encoded value; see `plan_inputs`."""
    reached: tuple[str, ...]
    function: str
    """Digest of the pickled step: a reference to its module if another process can import it, else its code."""
    by_name: bool
    """Whether it is a reference. The worker then compares the digest of the code that it has imported."""
    code: str
    """Digest of the code without the place of its files, for a worker that has them elsewhere. Empty if it is sent."""
    bundle: str
    """Digest of the bundle with the project's modules."""
    urls: dict[str, str | None] = field(repr=False)
    """Part of the store to its URL, for those that have one."""
    project: str
    actor: str
    key: str
    """Public key that signs the inputs."""
    variables: dict[str, str] = field(repr=False)
    """Environment variables of the run."""
    local: LocalPaths | None = None
    clock: int | None = None
    """Simulated time of the run's store when the job was sent, in µs since 1970; None if its clock is the system's."""
    everloop: str = VERSION

    def to_json(self) -> bytes:
        return _dump(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> JobSpec:
        """The inverse of `to_json`.

        Raises:
            CorruptionError: the data is not a job.
        """
        try:
            found: dict[str, Any] = json.loads(data)
            plan = {"format": 1, "name": "", "nodes": [found["node"]], "bundle": None}
            local = found["local"]
            if local is not None:
                local = LocalPaths(**{**local, "search_path": tuple(local["search_path"])})
            changed = {
                "node": Plan.from_json(json.dumps(plan)).nodes[0],
                "reached": tuple(found["reached"]),
                "local": local,
            }
            return cls(**{**found, **changed})
        except (ValueError, KeyError, TypeError, AttributeError, CorruptionError) as error:
            raise CorruptionError(f"This is not a job: {error}.", help="Start the run again.") from error


class SpecWriter:
    """Writes the specs of a step's jobs. A step may have thousands of elements, so what they share is encoded once.

    Args:
        first: the spec of any of these jobs.
    """

    def __init__(self, first: JobSpec) -> None:
        shared = {name: value for name, value in asdict(first).items() if name not in _OWN_FIELDS}
        self._shared = _dump(shared).removeprefix("{")

    def to_json(self, job: Job, store: Store) -> bytes:
        """The spec of a job as JSON.

        Raises:
            StepError: a parameter can neither be written as JSON nor be stored.
        """
        inputs = encode_inputs(job.inputs, job.name, store.objects)
        fields = {"name": job.name, "attempt": job.attempt, "inputs": inputs, "clock": simulated_time(store)}
        own = _dump(fields).removesuffix("}")
        return f"{own},{self._shared}".encode()


def simulated_time(store: Store) -> int | None:
    """The time of a store with a simulated clock, in µs since 1970; None for the system's clock."""
    from everloop.stores.clock import micros

    return micros(store.now()) if store.clock.simulated else None


def local_parts(urls: StoreUrls) -> dict[str, str]:
    """The parts of a store that are files or folders of this machine, with their paths."""
    found = {}
    for part in PARTS:
        url = str(getattr(urls, part))
        scheme, separator, rest = url.partition("://")
        if not separator:
            found[part] = url
        elif scheme in ("sqlite", "file"):
            found[part] = rest
    return found


def make_spec(
    job: Job, store: Store, *, function: str, by_name: bool, bundle: str, modules: dict[str, str], key: str
) -> JobSpec:
    """Translate a job. Parameters that are not plain data are stored.

    Args:
        function: digest of the pickled step, a reference to its module if `by_name`.
        bundle: digest of the code bundle, whose modules are in the files `modules` on this machine.
        key: this machine's public key.

    Raises:
        StepError: a parameter can neither be written as JSON nor be stored.
    """
    local = local_parts(store.urls)
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in _OWN_VARIABLES and not name.startswith(_OWN_PREFIXES)
    }
    paths = None
    if local:
        variables |= {name: os.environ[name] for name in _LOCAL_VARIABLES if name in os.environ}
        paths = LocalPaths(
            machine=this_machine(),
            home=str(store.home),
            parts=local,
            folder=str(Path.cwd()),
            search_path=tuple(sys.path),
            modules=modules,
        )
    urls = {part: getattr(store.urls, part) for part in (*PARTS, "log")}
    return JobSpec(
        name=job.name,
        run=job.run,
        attempt=job.attempt,
        node=job.node,
        inputs=encode_inputs(job.inputs, job.name, store.objects),
        reached=job.reached,
        function=function,
        by_name=by_name,
        code=relocatable_digest(job.step, roots_of(modules)) if by_name else "",
        bundle=bundle,
        urls={part: url for part, url in urls.items() if part not in local},
        project=store.project,
        actor=store.actor,
        key=key,
        variables=variables,
        local=paths,
        clock=simulated_time(store),
    )


def _dump(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


@cache
def this_machine() -> str:
    """Host name and boot of this machine: processes with the same text share its file system and its locks."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}".strip()


def unreachable_part(local: LocalPaths) -> tuple[str, str] | None:
    """The first part of a store that this process cannot use as the job's machine does, and why not.

    Objects and tables may be on a file system that machines share. SQLite needs shared memory as well, which only
    processes of one machine have.
    """
    if "records" in local.parts and local.machine != this_machine():
        return "records", f"is an SQLite file on the machine '{local.machine.split()[0]}'"
    for part in local.parts:
        path = Path(local.parts[part])
        found = path if part == "records" else path.parent if not path.exists() else path
        if not found.exists() or not os.access(found, os.R_OK | os.W_OK):
            return part, "does not exist there, or cannot be written"
    return None
