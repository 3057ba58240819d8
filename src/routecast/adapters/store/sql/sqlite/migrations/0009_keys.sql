-- API keys, revocations of tokens, and the version of both. Times are microseconds since 1970.

-- The text of a key is not stored: `digest` is its SHA-256. `projects` is a JSON list, NULL for all
-- projects. `last_used` is a full minute.
CREATE TABLE api_keys (
    id        TEXT    NOT NULL PRIMARY KEY,
    name      TEXT    NOT NULL,
    digest    BLOB    NOT NULL UNIQUE,
    scopes    TEXT    NOT NULL,             -- separated by spaces
    projects  TEXT,
    created   INTEGER NOT NULL,
    expires   INTEGER,
    revoked   INTEGER,
    last_used INTEGER
) STRICT, WITHOUT ROWID;

-- Tokens that are refused: those with the `jti` or the `sub` that is `value`, or all. With
-- `issued_before` only those that were issued before it. `until`: accepted again from then on.
CREATE TABLE revocations (
    kind          TEXT    NOT NULL CHECK (kind IN ('jti', 'subject', 'issued_before')),
    value         TEXT    NOT NULL,
    issued_before INTEGER,
    created       INTEGER NOT NULL,
    until         INTEGER,
    PRIMARY KEY (kind, value)
) STRICT, WITHOUT ROWID;

-- One row: a random text that is another one after each change of the tables above, except of
-- `last_used`. No number: after a restore, the same number could mean another content.
CREATE TABLE access_version (version TEXT NOT NULL) STRICT;
INSERT INTO access_version VALUES ('');
