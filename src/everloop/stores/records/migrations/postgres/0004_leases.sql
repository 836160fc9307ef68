-- Who holds shared work (`stores/leases.py`). Not records: a heartbeat adds neither an event nor a revision.
CREATE TABLE leases (
    project TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    fence BIGINT NOT NULL,
    beats BIGINT NOT NULL,
    owner TEXT NOT NULL,
    ttl_ms BIGINT NOT NULL,
    acquired_at BIGINT NOT NULL,
    renewed_at BIGINT NOT NULL,
    PRIMARY KEY (project, name)
);
