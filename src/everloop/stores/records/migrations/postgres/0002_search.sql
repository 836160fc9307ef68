-- Every single value of the records that can be searched, one row each; live records only. `rec` numbers them in the
-- order in which they came, `path` is a digest of project, kind and path.
CREATE TABLE searched_records (
    rec BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT COLLATE "C" NOT NULL UNIQUE,
    project TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL
);

CREATE INDEX searched_records_of_kind ON searched_records (project, kind, rec);

CREATE TABLE searched_values (
    rec BIGINT NOT NULL,
    path BIGINT NOT NULL,
    number DOUBLE PRECISION,
    text TEXT COLLATE "C",
    form SMALLINT NOT NULL,
    PRIMARY KEY (rec, path)
);

CREATE INDEX searched_values_by_number ON searched_values (path, number, rec) WHERE number IS NOT NULL;
-- Texts may be long, and an index holds their beginnings only.
CREATE INDEX searched_values_by_text ON searched_values (path, substr(text, 1, 200), rec) WHERE text IS NOT NULL;

CREATE TABLE searched_paths (
    path BIGINT PRIMARY KEY,
    project TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    field TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL
);

-- What was there before this table: the first search brings it in.
CREATE TABLE searched_backlog (id TEXT COLLATE "C" PRIMARY KEY);
INSERT INTO searched_backlog SELECT id FROM records WHERE deleted_at IS NULL AND kind = 'run';
