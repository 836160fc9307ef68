"""The nouns of everloop, each one frozen dataclass.

What Python returns is what the store keeps, HTTP sends and the command line prints: there are no twins.
Only the standard library is imported here. Times are timezone-aware UTC; digests are `sha256:<64 hex>`.

A record belongs to a project, has an id that sorts by time (UUIDv7) and a `key`: the name by which people
call it, unique among its kind in a project (`delays@3`, `delays@champion`). Where people never name a thing,
its key is its id.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

Json = Any  # None, bool, int, float, str, or a list or str-keyed dict of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What every noun has. `revision` counts the writes; the store compares it before it sets."""

    id: str
    project: str
    created_at: datetime
    revision: int = 0

    searchable: ClassVar[tuple[str, ...]] = ()
    """The fields by whose values a store lets records of this kind be searched; dicts by each name in them."""

    @property
    def key(self) -> str:
        return self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What made a run: enough to find the code again."""

    code: str | None = None
    """Digest over the code of every step of the run."""
    git_commit: str | None = None
    git_dirty: bool | None = None
    python: str | None = None
    platform: str | None = None
    host: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    git_branch: str | None = None
    git_root: str | None = None
    """Folder of the repository, on `host`."""
    changes: str | None = None
    """Digest of what differed from the commit, as a patch; new Python files are in it."""
    launch: tuple[str, ...] = ()
    """The command as the operating system was given it, its interpreter first, without secrets. There is no other
    record of it: what is shown and what is run again are both read from here."""
    folder: str | None = None
    """The working folder, on `host`."""
    seal: str | None = field(default=None, compare=False)
    """Proves to the machine where the run was started that it was; see `tracking.provenance`."""
    signature: dict[str, str] | None = field(default=None, compare=False)
    """Of an exported run: key and signature of the machine where it was started."""

    @property
    def command(self) -> tuple[str, ...]:
        return self.launch


RunState = Literal["scheduled", "running", "finished", "failed", "interrupted", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Record):
    """One turn of a loop, or one tracked script. `lost`: its process died without saying so."""

    name: str
    state: RunState = "running"
    loop: str | None = None
    trigger: str | None = None
    parent: str | None = None
    started_at: datetime
    ended_at: datetime | None = None
    seconds: float | None = None
    params: dict[str, Json] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    source: Source = Source()
    error: str | None = None
    experiment: str | None = None
    """Number of the experiment that it belongs to; None: the one called Default."""
    archived_at: datetime | None = None
    """When it was put away, out of every list, by somebody who may yet bring it back; None while it is shown."""
    metric_at: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Step and time (ms since 1970) of each metric's last value, where they are known: see `tracking.latest`."""
    artifacts_at: str | None = None
    """Where its client keeps its files, as a URI, for a run that came over MLflow's protocol."""
    user: str = ""
    inputs: tuple[dict[str, Json], ...] = ()
    """Datasets and models that it read, and models that it made, as MLflow's clients tell them."""

    searchable: ClassVar[tuple[str, ...]] = (
        "id",
        "name",
        "state",
        "loop",
        "trigger",
        "parent",
        "started_at",
        "ended_at",
        "created_at",
        "archived_at",
        "seconds",
        "error",
        "experiment",
        "user",
        "params",
        "tags",
        "metrics",
    )


StepStatus = Literal["ran", "cached", "failed", "skipped", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRun(Record):
    """What became of one step in one run."""

    run: str
    name: str
    status: StepStatus
    reason: str
    """Why it ran or did not: `cached`, `code changed: prepare`, `input changed: flights`, …"""
    fingerprint: str
    """Digest over code, inputs, parameters and package versions: the cache key."""
    code: str
    inputs: dict[str, str] = field(default_factory=dict)
    """Input name to content digest."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Output name to artifact id."""
    depends_on: tuple[str, ...] = ()
    observed: tuple[dict[str, Json], ...] = ()
    """Outside state that the step read (files, queries), each with how to look again."""
    parts: dict[str, str] = field(default_factory=dict)
    """The parts of the fingerprint, each a digest, so that a later run can say what changed."""
    attempts: int = 1
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact(Record):
    """One value that a step returned or a run logged."""

    run: str
    step: str | None = None
    name: str
    type: str
    """Name of its format in the plugin table: `frame`, `array`, `json`, `pickle`, …"""
    digest: str
    size_bytes: int
    meta: dict[str, Json] = field(default_factory=dict)
    signature: dict[str, str] | None = None
    """For code-bearing formats: who vouches for the bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract(Record):
    """What a table looks like: inferred once, edited by people, used three times."""

    dataset: str
    version: int
    columns: tuple[dict[str, Json], ...]
    rules: tuple[dict[str, Json], ...] = ()

    @property
    def key(self) -> str:
        return f"{self.dataset}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Record):
    """An immutable dataset version: a manifest of Parquet files by digest."""

    dataset: str
    version: int
    digest: str
    """Digest of the manifest: same content, same digest, same version."""
    rows: int
    size_bytes: int
    columns: dict[str, str]
    """Column name to Arrow type, in order."""
    files: tuple[dict[str, Json], ...] = ()
    """What the manifest lists: digest, rows and size_bytes of each Parquet file, in the order of the rows."""
    stats: dict[str, dict[str, Json]] = field(default_factory=dict)
    target: str | None = None
    time: str | None = None
    entity: str | None = None
    """Name of the key column."""
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    contract: str | None = None
    """Key of the contract that it was checked against."""
    run: str | None = None
    sources: tuple[dict[str, Json], ...] = ()

    @property
    def key(self) -> str:
        return f"{self.dataset}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureViewRecord(Record):
    """A named, versioned set of features of an entity over time."""

    name: str
    version: int
    entity: tuple[str, ...]
    time: str
    arrival: str | None = None
    ttl: str | None = None
    """Such as `6h`: how long a row counts."""
    features: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    """Name to type, of what is kept in the view's table."""
    windows: tuple[dict[str, Json], ...] = ()
    entity_as_text: bool = False
    code: str | None = None
    """Fingerprint of the declaration and of the code that gives the rows."""

    @property
    def key(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package(Record):
    """A model in its own safe format, with everything needed to answer; kept as a tree by digest."""

    digest: str
    format: str
    signature: dict[str, Json]
    """`inputs` and `outputs`: lists of {name, type, nullable, categories?}; `task`; `classes`."""
    size_bytes: int
    compiled: bool = False
    parity: dict[str, Json] = field(default_factory=dict)
    """Evidence that the packaged form answers as the trained one did."""
    trust: dict[str, str] | None = None


VersionState = Literal["registered", "rejected", "released", "rolled_back", "archived"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion(Record):
    """One registered model version, with its lineage."""

    model: str
    version: int
    package: str
    """Digest of the package."""
    state: VersionState = "registered"
    run: str | None = None
    snapshot: str | None = None
    """Key of the snapshot that it was trained on."""
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, Json] = field(default_factory=dict)
    signature: dict[str, Json] = field(default_factory=dict)
    code: str | None = None
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    source: str | None = None
    """Where its files are, as a URI, for a version that came over MLflow's protocol; it has no package then."""
    logged_model: str | None = None
    """Id of the logged model that it was made from."""
    stage: str = "None"
    """MLflow's older way to say what a version is for: None, Staging, Production or Archived."""
    run_link: str = ""
    user: str = ""
    updated_at: datetime | None = None

    @property
    def key(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredModel(Record):
    """What is said of a model as a whole, beside its versions. A model without one is known by its versions."""

    name: str
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    updated_at: datetime

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment(Record):
    """A named set of runs. Number 0 is called Default and holds what belongs to no other."""

    number: int
    name: str
    artifacts_at: str
    """Where clients keep the files of its runs, as a URI."""
    tags: dict[str, str] = field(default_factory=dict)
    updated_at: datetime
    archived_at: datetime | None = None

    @property
    def key(self) -> str:
        return self.name


LoggedModelState = Literal["pending", "ready", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedModel(Record):
    """Model files that a client has kept with an experiment, before anybody registers them."""

    name: str
    experiment: str
    """Number of the experiment."""
    artifacts_at: str
    state: LoggedModelState = "pending"
    message: str = ""
    type: str = ""
    run: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: tuple[dict[str, Json], ...] = ()
    """Each with key, value, step, at (ms since 1970), and the run and dataset that it was measured with."""
    updated_at: datetime
    archived_at: datetime | None = None


TraceState = Literal["unspecified", "in_progress", "ok", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace(Record):
    """One request through somebody's program, as a tree of spans, told by MLflow's or OpenTelemetry's clients."""

    trace_id: str
    """As the client names it: `tr-` and 32 hexadecimal digits."""
    experiment: str
    """Number of the experiment."""
    requested_at: datetime
    seconds: float | None = None
    state: TraceState = "unspecified"
    told: bool = False
    """Whether the client has said what the trace is, or so far only spans have come."""
    client_request: str | None = None
    request_preview: str | None = None
    response_preview: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    assessments: tuple[dict[str, Json], ...] = ()
    """What people and programs think of it, in the form of MLflow's protocol."""
    runs: tuple[str, ...] = ()
    """Ids of the runs that it was linked to, beside the one in which it was made."""
    spans: tuple[str, ...] = ()
    """Digests of the batches in which its spans came, each a JSON list in OpenTelemetry's form."""

    @property
    def key(self) -> str:
        return self.trace_id


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationDataset(Record):
    """A named set of questions to a language program, with what is expected of the answers; its rows stand beside."""

    name: str
    digest: str
    """Eight digits that change with every write of rows, as MLflow's clients compare them."""
    experiments: tuple[str, ...] = ()
    """Numbers of the experiments that it belongs to."""
    tags: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Json] = field(default_factory=dict)
    """Names and types of what its rows' inputs, outputs and expectations have ever had; empty before the first."""
    rows: int = 0
    user: str | None = None
    updated_by: str | None = None
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow(Record):
    """One question of an evaluation dataset. Its inputs are what it is: the same inputs are the same row."""

    dataset: str
    """Id of the evaluation dataset."""
    digest: str
    """Of the inputs."""
    inputs: dict[str, Json]
    outputs: Json = None
    expectations: dict[str, Json] | None = None
    tags: dict[str, Json] = field(default_factory=dict)
    source: dict[str, Json] | None = None
    """Where it comes from, in the form of MLflow's protocol: `source_type` and `source_data`."""
    user: str | None = None
    updated_by: str | None = None
    updated_at: datetime

    @property
    def key(self) -> str:
        return f"{self.dataset}#{self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRecord(Record):
    """How the answers of a language program are judged: a text that MLflow's clients read, and everloop never runs."""

    experiment: str
    """Number of the experiment."""
    name: str
    version: int
    scorer: str
    """What all versions have in common, as MLflow's clients name it."""
    definition: str

    @property
    def key(self) -> str:
        return f"{self.experiment}/{self.version}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias(Record):
    """A name that moves between versions, such as `champion`. Its history says who held it when."""

    model: str
    name: str
    version: str
    """Key of the model version that holds the alias."""

    @property
    def key(self) -> str:
        return f"{self.model}@{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One version's part of an endpoint's traffic."""

    version: str
    """Key of the model version."""
    percent: float
    role: Literal["champion", "canary", "shadow"] = "champion"


EndpointState = Literal["stopped", "starting", "ready", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRecord(Record):
    """Where a model answers, and which versions share its traffic."""

    name: str
    model: str
    routes: tuple[Route, ...] = ()
    state: EndpointState = "stopped"
    url: str | None = None
    options: dict[str, Json] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answer that an endpoint gave. Kept as a row of the prediction log."""

    id: str
    endpoint: str
    version: str
    role: str
    event_at: datetime
    arrived_at: datetime
    entity: str | None
    inputs: dict[str, Json]
    outputs: dict[str, Json]
    package: str | None = None
    """The digest of the package that answered."""
    instance: str | None = None
    """The process that answered, `<host>.<32 digits>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The truth about one entity, as it arrived. Kept as a row of the label table."""

    entity: str
    value: Json
    event_at: datetime
    arrived_at: datetime


FindingKind = Literal["drift", "performance", "quality", "freshness", "latency"]
Severity = Literal["info", "warning", "alarm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Record):
    """Something that monitoring saw in one window of an endpoint's log."""

    endpoint: str
    version: str | None = None
    kind: FindingKind
    severity: Severity
    subject: str
    """A feature, `prediction`, or a metric's name."""
    window_from: datetime
    window_to: datetime
    value: float | None = None
    threshold: float | None = None
    message: str
    evidence: dict[str, Json] = field(default_factory=dict)


Outcome = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult(Record):
    """One gate's answer about one candidate."""

    gate: str
    outcome: Outcome
    candidate: str
    champion: str | None = None
    message: str
    evidence: dict[str, Json] = field(default_factory=dict)
    run: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One step of a rollout: what was decided, when, and on what evidence."""

    at: datetime
    action: Literal["start", "advance", "hold", "complete", "roll_back", "reject"]
    percent: float
    reason: str
    evidence: dict[str, Json] = field(default_factory=dict)


ReleaseState = Literal["rejected", "rolling_out", "completed", "rolled_back", "superseded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Record):
    """A candidate's way to all the traffic, or back out."""

    endpoint: str
    candidate: str
    previous: str | None = None
    state: ReleaseState = "rolling_out"
    percent: float = 0.0
    steps: tuple[float, ...] = (100.0,)
    decisions: tuple[Decision, ...] = ()
    gates: tuple[str, ...] = ()
    """Ids of the gate results."""
    trigger: str | None = None
    run: str | None = None


Role = Literal["viewer", "editor", "approver", "admin"]
"""What somebody may do in a project; each may what those before it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Record):
    """Somebody who may log in. Kept apart from every project's records."""

    name: str
    roles: dict[str, Role] = field(default_factory=dict)
    """Project, or `*` for all, to role."""
    password: str | None = None
    """scrypt's parameters, salt and hash; None where only tokens open the door."""

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Token(Record):
    """A long random secret that stands for its owner; of the secret only the digest is kept."""

    name: str
    owner: str
    digest: str
    prefix: str
    """The secret's first characters, by which people recognise it."""
    roles: dict[str, Role] = field(default_factory=dict)
    """No more than this, and no more than the owner has."""
    expires_at: datetime | None = None
    used_at: datetime | None = None
    """Last use, to the hour."""
    revoked_at: datetime | None = None

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook(Record):
    """An outside address that is told of events."""

    name: str
    url: str
    verbs: tuple[str, ...] = ()
    """`kind.verb`, such as `alias.alias_set`; empty: every one that concerns models. In MLflow's form its own names,
    such as `model_version_alias.created`."""
    form: Literal["everloop", "mlflow"] = "everloop"
    """Whose words the messages are in."""
    description: str = ""
    active: bool = True
    """Whether messages are sent; what happens meanwhile is not sent later."""
    updated_at: datetime | None = None
    for_project: str
    secret: str
    """Key of the signature (HMAC-SHA256) over each message; sealed in the store."""
    sealed_url: str = ""
    """The whole URL, sealed, since its path often holds a token. `url` is then the part that everybody may see."""
    seq: int = 0
    """The last event that was delivered or given up."""
    part: int = 0
    """How many of the messages that the event after `seq` makes are out already."""
    failures: int = 0
    """Messages given up since the last that was delivered."""

    @property
    def key(self) -> str:
        return self.name if self.form == "everloop" else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasPolicy(Record):
    """How many people besides the one who asks must agree before an alias moves."""

    model: str
    alias: str
    approvals: int

    @property
    def key(self) -> str:
        return f"{self.model}@{self.alias}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One person's answer to a request."""

    by: str
    at: datetime
    approve: bool
    reason: str = ""


AliasRequestState = Literal["open", "approved", "rejected", "applied", "withdrawn", "void"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRequest(Record):
    """Somebody's wish to move an alias to a version, and what the others said."""

    model: str
    alias: str
    version: str
    """Key of the model version."""
    holder: str | None = None
    """Key of the version that held the alias when it was asked."""
    asked_by: str
    reason: str = ""
    state: AliasRequestState = "open"
    votes: tuple[Vote, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Who did what, when. Append-only; `seq` grows without reuse."""

    seq: int
    at: datetime
    actor: str
    verb: str
    kind: str
    subject: str
    """Id of the record."""
    key: str
    data: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One logged value of a metric."""

    key: str
    value: float
    step: int = 0
    at: datetime


KINDS: dict[str, type[Record]] = {
    "run": Run,
    "step": StepRun,
    "artifact": Artifact,
    "contract": Contract,
    "snapshot": Snapshot,
    "feature_view": FeatureViewRecord,
    "package": Package,
    "model_version": ModelVersion,
    "registered_model": RegisteredModel,
    "experiment": Experiment,
    "logged_model": LoggedModel,
    "trace": Trace,
    "evaluation_dataset": EvaluationDataset,
    "evaluation_row": EvaluationRow,
    "scorer": ScorerRecord,
    "alias": Alias,
    "endpoint": EndpointRecord,
    "finding": Finding,
    "gate_result": GateResult,
    "release": Release,
    "user": User,
    "token": Token,
    "webhook": Webhook,
    "alias_policy": AliasPolicy,
    "alias_request": AliasRequest,
}
"""Every record kind by the name under which the store keeps it."""
