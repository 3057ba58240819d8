-- oldest program: 1
-- API keys, revocations of tokens, and the version of both. Times are microseconds since 1970.
-- Programs of an older schema know no keys, and accept everyone, until they are upgraded.

-- The text of a key is not stored: `digest` is its SHA-256. `projects` is a JSON list, NULL for all
-- projects. `last_used` is a full minute.
CREATE TABLE api_keys (
    id        text COLLATE "C" PRIMARY KEY,
    name      text   NOT NULL,
    digest    bytea  NOT NULL UNIQUE,
    scopes    text   NOT NULL,               -- separated by spaces
    projects  text,
    created   bigint NOT NULL,
    expires   bigint,
    revoked   bigint,
    last_used bigint
);

-- Tokens that are refused: those with the `jti` or the `sub` that is `value`, or all. With
-- `issued_before` only those that were issued before it. `until`: accepted again from then on.
CREATE TABLE revocations (
    kind          text COLLATE "C" NOT NULL CHECK (kind IN ('jti', 'subject', 'issued_before')),
    value         text COLLATE "C" NOT NULL,
    issued_before bigint,
    created       bigint NOT NULL,
    until         bigint,
    PRIMARY KEY (kind, value)
);

-- One row: a random text that is another one after each change of the tables above, except of
-- `last_used`. No number: after a restore, the same number could mean another content. Each change
-- locks it first, so changes take turns.
CREATE TABLE access_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  text COLLATE "C" NOT NULL
);
INSERT INTO access_version (version) VALUES ('');
