CREATE TABLE records (
    id TEXT COLLATE "C" PRIMARY KEY,
    project TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    state TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    written_at BIGINT NOT NULL,
    deleted_at BIGINT,
    -- The text as it was written keeps the order of names, which JSONB does not; only conditions read the JSONB.
    body TEXT NOT NULL,
    doc JSONB GENERATED ALWAYS AS (body::jsonb) STORED
);

CREATE UNIQUE INDEX records_by_key ON records (project, kind, key) WHERE deleted_at IS NULL;
CREATE INDEX records_by_age ON records (project, kind, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX records_by_state ON records (project, kind, state, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX records_deleted ON records (project, deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE revisions (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT COLLATE "C" NOT NULL,
    project TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    state TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    written_at BIGINT NOT NULL,
    until BIGINT NOT NULL,
    body TEXT NOT NULL,
    doc JSONB GENERATED ALWAYS AS (body::jsonb) STORED
);

CREATE INDEX revisions_by_id ON revisions (id);
CREATE INDEX revisions_by_key ON revisions (project, kind, key);

CREATE TABLE metrics (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project TEXT COLLATE "C" NOT NULL,
    series TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    UNIQUE (project, series, key)
);

CREATE TABLE points (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    metric BIGINT NOT NULL,
    step BIGINT NOT NULL,
    at BIGINT NOT NULL,
    written_at BIGINT NOT NULL,
    value DOUBLE PRECISION
);

CREATE INDEX points_by_step ON points (metric, step, seq);

CREATE TABLE events (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project TEXT COLLATE "C" NOT NULL,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    verb TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    key TEXT NOT NULL,
    data TEXT
);

CREATE INDEX events_by_project ON events (project, seq);
CREATE INDEX events_by_subject ON events (project, subject, seq);
