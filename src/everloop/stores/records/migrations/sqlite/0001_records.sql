CREATE TABLE records (
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT,
    created_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    written_at INTEGER NOT NULL,
    deleted_at INTEGER,
    body TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX records_by_key ON records (project, kind, key) WHERE deleted_at IS NULL;
CREATE INDEX records_by_age ON records (project, kind, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX records_by_state ON records (project, kind, state, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX records_deleted ON records (project, deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE revisions (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    project TEXT NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT,
    created_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    written_at INTEGER NOT NULL,
    until INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;

CREATE INDEX revisions_by_id ON revisions (id);
CREATE INDEX revisions_by_key ON revisions (project, kind, key);

CREATE TABLE metrics (
    id INTEGER PRIMARY KEY,
    project TEXT NOT NULL,
    series TEXT NOT NULL,
    key TEXT NOT NULL,
    UNIQUE (project, series, key)
) STRICT;

CREATE TABLE points (
    seq INTEGER PRIMARY KEY,
    metric INTEGER NOT NULL,
    step INTEGER NOT NULL,
    at INTEGER NOT NULL,
    written_at INTEGER NOT NULL,
    value REAL
) STRICT;

CREATE INDEX points_by_step ON points (metric, step);

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    project TEXT NOT NULL,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    verb TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    key TEXT NOT NULL,
    data TEXT
) STRICT;

CREATE INDEX events_by_project ON events (project, seq);
CREATE INDEX events_by_subject ON events (project, subject, seq);

-- Steps are looked up by their cache key at every run. The form is the one in which a condition on a field is asked.
CREATE INDEX records_by_fingerprint ON records (
    project,
    kind,
    CASE WHEN json_type(body, '$."fingerprint"') IN ('text') THEN json_extract(body, '$."fingerprint"') END,
    id
) WHERE deleted_at IS NULL;
