-- The store itself, generations with their changes, and the audit log.
-- 0x536c7563: by this a file is known as a store of Sluice.
PRAGMA application_id = 1399616867;

CREATE TABLE store (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    id BLOB NOT NULL CHECK (length(id) = 16),
    -- The newest audit record; 0 and zeros before the first. Kept apart, so that records taken off the end are missed.
    audit_number INTEGER NOT NULL,
    audit_hash BLOB NOT NULL CHECK (length(audit_hash) = 32)
) STRICT;

CREATE TABLE generation (
    number INTEGER PRIMARY KEY CHECK (number > 0),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    -- 0: nothing was in force.
    base INTEGER NOT NULL CHECK (base >= 0 AND base < number),
    rollback_of INTEGER REFERENCES generation (number),
    rows INTEGER NOT NULL,
    changes INTEGER NOT NULL,
    comment TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    released_at INTEGER,
    released_by TEXT,
    expires_at INTEGER NOT NULL,
    has_rows INTEGER NOT NULL CHECK (has_rows IN (0, 1)),
    CHECK ((released_at IS NULL) = (released_by IS NULL))
) STRICT;

CREATE INDEX generation_released ON generation (number) WHERE released_at IS NOT NULL;

-- What can be pruned is looked for among these alone, however long the history.
CREATE INDEX generation_waiting ON generation (number) WHERE released_at IS NULL AND has_rows = 1;

-- The changes of a generation to its base: fleet.v1.GenerationChunk without ids, of about 1 MiB.
CREATE TABLE generation_chunk (
    generation INTEGER NOT NULL REFERENCES generation (number),
    place INTEGER NOT NULL,
    changes BLOB NOT NULL,
    PRIMARY KEY (generation, place)
) STRICT;

CREATE TABLE audit (
    number INTEGER PRIMARY KEY CHECK (number > 0),
    at INTEGER NOT NULL,
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    what TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    request_id TEXT NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
