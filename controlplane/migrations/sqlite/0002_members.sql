-- Who may call: operators' tokens, join tokens, and the nodes that joined. Of secrets only hashes.
CREATE TABLE token (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('viewer', 'auditor', 'operator', 'admin')),
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT;

CREATE UNIQUE INDEX token_name ON token (name) WHERE revoked_at IS NULL;

CREATE TABLE join_token (
    id TEXT PRIMARY KEY NOT NULL,
    -- The one node it is for.
    node TEXT,
    uses_left INTEGER NOT NULL CHECK (uses_left >= 0),
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;

CREATE TABLE node (
    name TEXT PRIMARY KEY NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    enrolled_at INTEGER NOT NULL,
    -- For people; the join token itself may be forgotten before the node.
    join_token TEXT NOT NULL
) STRICT;
