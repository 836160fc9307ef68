"""The plan of a graph as plain data: what each step is, what it takes and what it needs, without any live object.

    plan = compile_plan(graph)          plan.to_json()          Plan.from_json(text)

Executors translate a plan, and jobs refer to its nodes. A plan says what a step's code is (module, name, digest, and
the digest of the bundle that holds the project's modules), never where a file is on this machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, GraphError
from everloop.pipeline.unknown_names import nearest_names
from everloop.pipeline.value_digests import digest_text

if TYPE_CHECKING:
    from everloop.records import Json

FORMAT = 1
"""Version of the JSON. A reader refuses a greater one."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a step."""

    name: str
    type: str = ""
    """The annotation as text, such as `polars.DataFrame`; empty if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanNode:
    """One step of a plan."""

    name: str
    module: str
    """Module that the function is defined in. It is `__main__` for a script, which no other process can import."""
    qualname: str
    code: str
    """Digest of all project code that the step depends on."""
    takes: tuple[Port, ...] = ()
    gives: tuple[Port, ...] = ()
    """Named outputs; empty if the step has a single result."""
    inputs: dict[str, Json] = field(default_factory=dict)
    """Input to its encoded binding, see `plan_inputs`."""
    needs: tuple[str, ...] = ()
    """Names of the nodes that its inputs come from."""
    mapped: str | None = None
    """The input over whose elements it fans out."""
    retries: int = 0
    backoff_s: float = 1.0
    timeout_s: float | None = None
    cache: bool = True
    version: str | None = None
    resources: dict[str, float] = field(default_factory=dict)
    """Resource to amount; memory is in bytes."""
    environment: tuple[str, ...] = ()
    """Requirements to install for this step, as for pip."""
    on_driver: bool = False
    """Whether it has to run in the process of the run, because it changes things outside of its result."""
    modules: tuple[str, ...] = ()
    """Project modules that its code is in."""
    packages: dict[str, str] = field(default_factory=dict)
    """Distribution to version."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The nodes of a graph, each after the nodes that it needs, and the digest of the bundle with their code."""

    name: str
    nodes: tuple[PlanNode, ...]
    bundle: str | None = None
    """Digest of the code bundle in the store; None if it has not been stored."""

    def get(self, name: str) -> PlanNode:
        """The node of that name.

        Raises:
            GraphError: the plan has no such node.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise GraphError(
            f"The plan has no step '{name}'.", help=nearest_names(name, [node.name for node in self.nodes])
        )

    @property
    def digest(self) -> str:
        """`plan:` and 32 hex digits. Equal plans have equal digests."""
        return f"plan:{digest_text(self.to_json())}"

    def to_json(self) -> str:
        """The plan as JSON with sorted keys."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The inverse of `to_json`.

        Raises:
            CorruptionError: the text is not a plan, or a newer everloop wrote it.
        """
        try:
            data = json.loads(text)
            written = data["format"]
            if type(written) is not int or not 1 <= written <= FORMAT:
                raise CorruptionError(
                    f"This plan has the format {written!r}; this everloop reads 1 to {FORMAT}.",
                    help="Read it with the everloop that wrote it, or a newer one.",
                )
            nodes = tuple(_read_node(node) for node in data["nodes"])
            return cls(str(data["name"]), nodes, data["bundle"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptionError(
                f"This is not a plan: {type(error).__name__}: {error}.", help="Use the text that Plan.to_json returned."
            ) from error


def _read_node(data: dict[str, Any]) -> PlanNode:
    tuples = {name: tuple(data[name]) for name in ("needs", "environment", "modules")}
    ports = {name: tuple(Port(**port) for port in data[name]) for name in ("takes", "gives")}
    return PlanNode(**{**data, **tuples, **ports})
