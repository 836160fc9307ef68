-- Who holds shared work (`stores/leases.py`). Not records: a heartbeat adds neither an event nor a revision.
CREATE TABLE leases (
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    fence INTEGER NOT NULL,
    beats INTEGER NOT NULL,
    owner TEXT NOT NULL,
    ttl_ms INTEGER NOT NULL,
    acquired_at INTEGER NOT NULL,
    renewed_at INTEGER NOT NULL,
    PRIMARY KEY (project, name)
) STRICT, WITHOUT ROWID;
