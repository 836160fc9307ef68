"""The record types of everloop, each a frozen dataclass.

The same classes are used everywhere: Python returns them, the store keeps them, HTTP sends them and the command line
prints them. This module imports only the standard library. Times are timezone-aware UTC; digests are
`sha256:<64 hex>`.

Every record belongs to a project, has an id that sorts by time (UUIDv7) and a `key`. The key is the name that people
use, unique within its kind and project (`delays@3`, `delays@champion`). Records that people never name have their id
as key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

Json = Any  # None, bool, int, float, str, or a list or str-keyed dict of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The fields that every record has."""

    id: str
    project: str
    created_at: datetime
    revision: int = 0
    """Number of updates so far. An update is refused if the stored revision differs from the record's."""

    searchable: ClassVar[tuple[str, ...]] = ()
    """The fields that records of this kind can be searched by. A dict can be searched by each of its names."""

    @property
    def key(self) -> str:
        return self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The code and environment of a run: enough to find them again."""

    code: str | None = None
    """Digest of the code of all steps of the run."""
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
    """Digest of a patch with all changes since the commit. New Python files are included."""
    launch: tuple[str, ...] = ()
    """The command line as the operating system received it, interpreter first, with secrets removed. The command is
    stored only here: it is shown from this field and run again from it."""
    folder: str | None = None
    """The working folder, on `host`."""
    seal: str | None = field(default=None, compare=False)
    """An HMAC that lets the machine where the run was started recognise it; see `tracking.provenance`."""
    signature: dict[str, str] | None = field(default=None, compare=False)
    """For an exported run: key id and signature of the machine where it was started."""

    @property
    def command(self) -> tuple[str, ...]:
        return self.launch


RunState = Literal["scheduled", "running", "finished", "failed", "interrupted", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Record):
    """One run of a loop, or of a tracked script."""

    name: str
    state: RunState = "running"
    """`lost`: its process died without recording an end."""
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
    """Number of the experiment that the run belongs to. None means the experiment Default."""
    archived_at: datetime | None = None
    """When the run was archived. Archived runs are left out of lists and can be restored; None while it is shown."""
    metric_at: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Step and time (ms since 1970) of each metric's last value, if known; see `tracking.latest`."""
    artifacts_at: str | None = None
    """For a run logged over MLflow's protocol: the URI where its client stores its files."""
    user: str = ""
    inputs: tuple[dict[str, Json], ...] = ()
    """Datasets and models that the run read and models that it created, in the form that MLflow's clients send."""
    cause: dict[str, Json] = field(default_factory=dict)
    """What caused a run of a loop: `trigger`, `reason` and `evidence`, and the `marks` of triggers at its start."""

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


QueuedRunState = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRun(Record):
    """A run of a loop that a trigger has requested and a runner takes. At most one waits for each loop."""

    loop: str
    trigger: str
    """Why it was requested, such as `Every: 1w: the last run began 2024-03-01 12:00`."""
    state: QueuedRunState = "waiting"
    cause: dict[str, Json] = field(default_factory=dict)
    """Evidence of the trigger."""
    joined: tuple[str, ...] = ()
    """Further triggers that fired while it was waiting. One run serves them all."""
    params: dict[str, Json] = field(default_factory=dict)
    """Values for parameters of steps."""
    folder: str
    """Project folder of the process that requested it. A runner uses its own copy of the project."""
    code: str | None = None
    """SHA-256 of the project's Python files at that time, in hexadecimal digits."""
    timeout_s: float | None = None
    attempts: int = 0
    """How many times it was started. It is started again only if its process died."""
    most_attempts: int = 3
    runner: str = ""
    """Identity of the runner that has it now; empty if none has."""
    fence: int = 0
    """Fencing number of that runner's lease."""
    run: str | None = None
    """Id of its last run."""
    cancel_requested_by: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: str | None = None

    @property
    def key(self) -> str:
        # Keys are unique, so the store itself refuses a second waiting run of a loop.
        return self.loop if self.state == "waiting" else self.id


StepStatus = Literal["ran", "cached", "failed", "skipped", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRun(Record):
    """The outcome of one step in one run."""

    run: str
    name: str
    status: StepStatus
    reason: str
    """Why the step ran or did not run: `cached`, `code changed: prepare`, `input changed: flights`, …"""
    fingerprint: str
    """The cache key: a digest of code, inputs, parameters and package versions."""
    code: str
    inputs: dict[str, str] = field(default_factory=dict)
    """Input name to content digest."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Output name to artifact id."""
    depends_on: tuple[str, ...] = ()
    observed: tuple[dict[str, Json], ...] = ()
    """Outside state that the step read (files, queries), each with what is needed to check it again."""
    parts: dict[str, str] = field(default_factory=dict)
    """The parts of the fingerprint, each a digest. A later run compares them to report what changed."""
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
    """For formats that contain code: key id and signature of the machine that signed the bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract(Record):
    """The expected columns and rules of a table: inferred once, edited by people, and checked against the data."""

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
    """Digest of the manifest. The same content has the same digest and is the same version."""
    rows: int
    size_bytes: int
    columns: dict[str, str]
    """Column name to Arrow type, in the order of the columns."""
    files: tuple[dict[str, Json], ...] = ()
    """The Parquet files of the manifest in the order of their rows, each with `digest`, `rows` and `size_bytes`."""
    stats: dict[str, dict[str, Json]] = field(default_factory=dict)
    target: str | None = None
    time: str | None = None
    entity: str | None = None
    """Name of the key column."""
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    contract: str | None = None
    """Key of the contract that the data was checked against."""
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
    """How long a row stays valid, such as `6h`."""
    features: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    """Column name to type, for the columns stored in the view's table."""
    windows: tuple[dict[str, Json], ...] = ()
    entity_as_text: bool = False
    code: str | None = None
    """Fingerprint of the declaration and of the code that produces the rows."""

    @property
    def key(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package(Record):
    """A model in everloop's own safe format, with everything needed to score. Stored as a file tree by digest."""

    digest: str
    format: str
    signature: dict[str, Json]
    """`inputs` and `outputs`: lists of {name, type, nullable, categories?}; `task`; `classes`."""
    size_bytes: int
    compiled: bool = False
    parity: dict[str, Json] = field(default_factory=dict)
    """Evidence that the packaged model gives the same predictions as the trained one."""
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
    """Key of the snapshot that the model was trained on."""
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, Json] = field(default_factory=dict)
    signature: dict[str, Json] = field(default_factory=dict)
    code: str | None = None
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    source: str | None = None
    """For a version registered over MLflow's protocol: the URI of its files. Such a version has no package."""
    logged_model: str | None = None
    """Id of the logged model that the version was created from."""
    stage: str = "None"
    """MLflow's stage, which aliases have replaced: None, Staging, Production or Archived."""
    run_link: str = ""
    user: str = ""
    updated_at: datetime | None = None

    @property
    def key(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredModel(Record):
    """Description and tags of a model as a whole. A model can have versions without having this record."""

    name: str
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    updated_at: datetime

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment(Record):
    """A named set of runs. Number 0 is called Default; it holds all runs without an experiment."""

    number: int
    name: str
    artifacts_at: str
    """URI where clients store the files of the experiment's runs."""
    tags: dict[str, str] = field(default_factory=dict)
    updated_at: datetime
    archived_at: datetime | None = None

    @property
    def key(self) -> str:
        return self.name


LoggedModelState = Literal["pending", "ready", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedModel(Record):
    """Model files that a client has logged to an experiment. They can be registered later."""

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
    """Each with `key`, `value`, `step`, `at` (ms since 1970), and the run and dataset that it was measured with."""
    updated_at: datetime
    archived_at: datetime | None = None


TraceState = Literal["unspecified", "in_progress", "ok", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace(Record):
    """One request through a program, as a tree of spans sent by MLflow's or OpenTelemetry's clients."""

    trace_id: str
    """The client's id of the trace: `tr-` and 32 hexadecimal digits."""
    experiment: str
    """Number of the experiment."""
    requested_at: datetime
    seconds: float | None = None
    state: TraceState = "unspecified"
    told: bool = False
    """Whether the client has sent the trace's own metadata. False while only spans have arrived."""
    client_request: str | None = None
    request_preview: str | None = None
    response_preview: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    assessments: tuple[dict[str, Json], ...] = ()
    """Feedback and expectations from people and programs, in the form of MLflow's protocol."""
    runs: tuple[str, ...] = ()
    """Ids of the runs that the trace was linked to, besides the run that produced it."""
    spans: tuple[str, ...] = ()
    """Digests of the batches in which the spans arrived, each a JSON list in OpenTelemetry's form."""

    @property
    def key(self) -> str:
        return self.trace_id


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationDataset(Record):
    """A named set of inputs for a language-model application, with the expected outputs. Rows are separate records."""

    name: str
    digest: str
    """Eight digits that change with every write of rows. MLflow's clients compare them."""
    experiments: tuple[str, ...] = ()
    """Numbers of the experiments that the dataset belongs to."""
    tags: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Json] = field(default_factory=dict)
    """Names and types of all inputs, outputs and expectations that rows have ever had; empty before the first row."""
    rows: int = 0
    user: str | None = None
    updated_by: str | None = None
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow(Record):
    """One row of an evaluation dataset. Its inputs identify it: the same inputs are the same row."""

    dataset: str
    """Id of the evaluation dataset."""
    digest: str
    """Digest of the inputs."""
    inputs: dict[str, Json]
    outputs: Json = None
    expectations: dict[str, Json] | None = None
    tags: dict[str, Json] = field(default_factory=dict)
    source: dict[str, Json] | None = None
    """Origin of the row, in the form of MLflow's protocol: `source_type` and `source_data`."""
    user: str | None = None
    updated_by: str | None = None
    updated_at: datetime

    @property
    def key(self) -> str:
        return f"{self.dataset}#{self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRecord(Record):
    """How the outputs of a language-model application are scored. MLflow's clients run it; everloop only stores it."""

    experiment: str
    """Number of the experiment."""
    name: str
    version: int
    scorer: str
    """Id that all versions of the scorer share, as MLflow's clients use it."""
    definition: str
    """The scorer as text, in the form of MLflow's clients."""

    @property
    def key(self) -> str:
        return f"{self.experiment}/{self.version}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias(Record):
    """A name that points to a version and can be moved, such as `champion`. Its history shows every earlier version."""

    model: str
    name: str
    version: str
    """Key of the model version that the alias points to."""

    @property
    def key(self) -> str:
        return f"{self.model}@{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One version's share of an endpoint's traffic."""

    version: str
    """Key of the model version."""
    percent: float
    """Share of the traffic, from 0 to 100."""
    role: Literal["champion", "canary", "shadow"] = "champion"


EndpointState = Literal["stopped", "starting", "ready", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRecord(Record):
    """A served model: its URL, and the versions that share its traffic."""

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
    """One prediction that an endpoint has returned, stored as a row of the prediction log."""

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
    """Digest of the package that made the prediction."""
    instance: str | None = None
    """The serving process, `<host>.<32 digits>`."""


FindingKind = Literal["drift", "performance", "quality", "freshness", "latency"]
Severity = Literal["info", "warning", "alarm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Record):
    """Something that monitoring detected in one window of an endpoint's prediction log."""

    endpoint: str
    version: str | None = None
    kind: FindingKind
    severity: Severity
    subject: str
    """A feature, `prediction`, or the name of a metric."""
    window_from: datetime
    window_to: datetime
    value: float | None = None
    threshold: float | None = None
    message: str
    evidence: dict[str, Json] = field(default_factory=dict)


IncidentSeverity = Literal["notice", "alarm"]
IncidentState = Literal["open", "acknowledged", "muted", "accepted", "resolved"]
IncidentAction = Literal["open", "join", "escalate", "acknowledge", "mute", "unmute", "accept", "resolve", "reopen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentChange:
    """One entry in the history of an incident. `actor` is None if monitoring itself made the change."""

    at: datetime
    action: IncidentAction
    text: str
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident(Record):
    """A disturbance that a person is shown: opened once, joined by all findings that belong to it, then resolved."""

    endpoint: str
    kind: FindingKind
    severity: IncidentSeverity = "notice"
    """A notice changes nothing that matters yet. An alarm harms predictions, or is expected to."""
    state: IncidentState = "open"
    title: str
    """One sentence that a product owner understands."""
    message: str = ""
    """What has changed, what it does to the predictions, and what to do."""
    subjects: tuple[str, ...] = ()
    """Features, `prediction` or metrics, the most important first."""
    versions: tuple[str, ...] = ()
    """Keys of the model versions that answered meanwhile."""
    began_at: datetime
    """Start of the first window that deviated."""
    seen_at: datetime
    """End of the last window that deviated."""
    resolved_at: datetime | None = None
    muted_until: datetime | None = None
    history: tuple[IncidentChange, ...] = ()
    findings: tuple[str, ...] = ()
    """Ids of the findings that belong to it."""
    evidence: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationChannel(Record):
    """A channel that receives messages about incidents, and what it has received. Its URL is not stored."""

    name: str
    announced: dict[str, IncidentSeverity] = field(default_factory=dict)
    """Id of each ongoing incident that the channel has a message about, with its severity in that message."""
    digest_from: datetime
    """The moment from which the periods of digests are counted."""
    messages: int = 0
    """Number of messages sent so far."""
    sent_at: datetime | None = None
    failures: int = 0
    """Failed attempts since the last message."""
    retry_at: datetime | None = None
    error: str | None = None

    @property
    def key(self) -> str:
        return self.name


Outcome = Literal["pass", "fail", "undecided"]
GateSeverity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult(Record):
    """The result of one gate for one candidate."""

    gate: str
    outcome: Outcome
    candidate: str
    champion: str | None = None
    message: str
    severity: GateSeverity = "error"
    """A failed gate with the severity `warning` is shown, but does not reject the candidate."""
    evidence: dict[str, Json] = field(default_factory=dict)
    run: str | None = None


DecisionAction = Literal["start", "advance", "hold", "complete", "roll_back", "reject", "pause", "resume", "approve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision of a rollout, with its time, reason and evidence."""

    at: datetime
    action: DecisionAction
    percent: float
    reason: str
    evidence: dict[str, Json] = field(default_factory=dict)
    actor: str = ""
    """Who decided: a user, or the worker on the evidence."""


Awaited = Literal["approval", "window"]
ReleaseState = Literal["rejected", "rolling_out", "completed", "rolled_back", "superseded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Record):
    """The rollout of a candidate: step by step to all of the traffic, or back to the previous version."""

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
    looks: tuple[int, ...] = ()
    """Labelled rows at each look of the sequential test so far."""
    paused: bool = False
    """Whether a person has paused the release. It takes no step forward then, but may be rolled back."""
    approved_by: str | None = None
    """Who approved that the candidate takes all the traffic."""
    awaits: Awaited | None = None
    """What the next step waits for, once the evidence allows it: a person, or the end of a freeze window."""


Role = Literal["viewer", "editor", "approver", "admin"]
"""A user's rights in a project. Each role includes the rights of those before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Record):
    """A user who can log in. Users are stored apart from the records of all projects."""

    name: str
    roles: dict[str, Role] = field(default_factory=dict)
    """Project to role; `*` stands for all projects."""
    password: str | None = None
    """scrypt parameters, salt and hash. None if the user can only use tokens."""

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Token(Record):
    """A long random secret that authenticates its owner. Only its digest is stored."""

    name: str
    owner: str
    digest: str
    prefix: str
    """The secret's first characters, so that people can recognise it."""
    roles: dict[str, Role] = field(default_factory=dict)
    """Upper limit of the token's rights. It never has more rights than its owner."""
    expires_at: datetime | None = None
    used_at: datetime | None = None
    """Last use, rounded to the hour."""
    revoked_at: datetime | None = None

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook(Record):
    """A URL that receives events."""

    name: str
    url: str
    verbs: tuple[str, ...] = ()
    """The events to send, as `kind.verb`, such as `alias.alias_set`. Empty means all that concern models or their
    incidents. With MLflow's form they have MLflow's names, such as `model_version_alias.created`."""
    form: Literal["everloop", "mlflow"] = "everloop"
    """Format of the messages: everloop's own, or MLflow's."""
    description: str = ""
    active: bool = True
    """Whether messages are sent. Events that occur while this is false are not sent later."""
    updated_at: datetime | None = None
    for_project: str
    """The project whose events are sent."""
    secret: str
    """Key that signs each message (HMAC-SHA256). It is encrypted in the store."""
    sealed_url: str = ""
    """The full URL, encrypted because its path often holds a token. `url` is then the part that is safe to show."""
    seq: int = 0
    """Number of the last event that was delivered or given up."""
    part: int = 0
    """How many messages of the event after `seq` have been sent already."""
    failures: int = 0
    """Number of messages given up since the last successful delivery."""

    @property
    def key(self) -> str:
        return self.name if self.form == "everloop" else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasPolicy(Record):
    """The approvals that are needed before an alias moves."""

    model: str
    alias: str
    approvals: int
    """Number of people, besides the requester, who must approve."""

    @property
    def key(self) -> str:
        return f"{self.model}@{self.alias}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One person's approval or rejection of a request."""

    by: str
    at: datetime
    approve: bool
    reason: str = ""


AliasRequestState = Literal["open", "approved", "rejected", "applied", "withdrawn", "void"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRequest(Record):
    """A request to move an alias to a version, and the votes on it."""

    model: str
    alias: str
    version: str
    """Key of the model version."""
    holder: str | None = None
    """Key of the version that the alias pointed to when the request was made."""
    asked_by: str
    """The user who made the request."""
    reason: str = ""
    state: AliasRequestState = "open"
    votes: tuple[Vote, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerCall(Record):
    """A request to run a loop again: by a person, by another system, or because of a commit."""

    loop: str
    reason: str
    asked_by: str
    idempotency: str
    """A call with the same text is the same call. Default: the record's id."""
    commit: str | None = None
    """The commit that a version control system reported."""
    branch: str | None = None
    files: tuple[str, ...] = ()
    """The files that the reported commits change, relative to the repository; empty if they are not known."""

    @property
    def key(self) -> str:
        return f"{self.loop}/{self.idempotency}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerState(Record):
    """What is known about a loop's trigger between two ticks. Changes of it are events."""

    loop: str
    trigger: str
    token: str = ""
    """What the trigger fired for when it was last checked; empty if it did not fire."""
    since: datetime | None = None
    """When it first fired for `token`."""
    note: str = ""
    """Why the trigger failed or was held back, as last reported; empty if it works."""

    @property
    def key(self) -> str:
        return f"{self.loop}/{self.trigger}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of the append-only audit log: who did what, and when."""

    seq: int
    """Increases with every event; numbers are never reused."""
    at: datetime
    actor: str
    verb: str
    kind: str
    subject: str
    """Id of the record that the event is about."""
    key: str
    """Key of that record."""
    data: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who holds a piece of shared work. Kept beside the records, so that heartbeats add no events and no revisions."""

    name: str
    fence: int
    """Increases each time the lease is acquired, and never otherwise. It identifies one holding of the lease."""
    beats: int
    """Increases with every heartbeat."""
    owner: str
    """Identity of the holding process, `host/scope/pid/start`. Empty if the lease was released."""
    ttl_s: float
    """How long the lease lasts without a heartbeat."""
    acquired_at: datetime
    renewed_at: datetime
    """Times by the owner's own clock, for people to read. No decision depends on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One logged value of a metric."""

    key: str
    value: float
    step: int = 0
    at: datetime


KINDS: dict[str, type[Record]] = {
    "run": Run,
    "queued_run": QueuedRun,
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
    "incident": Incident,
    "notification_channel": NotificationChannel,
    "gate_result": GateResult,
    "release": Release,
    "user": User,
    "token": Token,
    "webhook": Webhook,
    "alias_policy": AliasPolicy,
    "alias_request": AliasRequest,
    "trigger_call": TriggerCall,
    "trigger_state": TriggerState,
}
"""Every kind of record by its name in the store."""
