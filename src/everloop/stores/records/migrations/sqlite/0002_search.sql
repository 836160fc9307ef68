-- Every single value of the records that can be searched, one row each; live records only. `rec` numbers them in the
-- order in which they came, `path` is a digest of project, kind and path.
CREATE TABLE searched_records (
    rec INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    project TEXT NOT NULL,
    kind TEXT NOT NULL
) STRICT;

CREATE INDEX searched_records_of_kind ON searched_records (project, kind, rec);

CREATE TABLE searched_values (
    rec INTEGER NOT NULL,
    path INTEGER NOT NULL,
    number REAL,
    text TEXT,
    form INTEGER NOT NULL,
    PRIMARY KEY (rec, path)
) STRICT, WITHOUT ROWID;

CREATE INDEX searched_values_by_number ON searched_values (path, number, rec) WHERE number IS NOT NULL;
-- Texts may be long, and an index holds their beginnings only.
CREATE INDEX searched_values_by_text ON searched_values (path, substr(text, 1, 200), rec) WHERE text IS NOT NULL;

CREATE TABLE searched_paths (
    path INTEGER PRIMARY KEY,
    project TEXT NOT NULL,
    kind TEXT NOT NULL,
    field TEXT NOT NULL,
    name TEXT NOT NULL
) STRICT;

-- What was there before this table: the first search brings it in.
CREATE TABLE searched_backlog (id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
INSERT INTO searched_backlog SELECT id FROM records WHERE deleted_at IS NULL AND kind = 'run';
