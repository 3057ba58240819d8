-- The first schema: decisions, rollups and the position.
--
-- Times are microseconds since 1970 in decisions, and seconds since 1970 in rollups (`start`).

-- One row: the position (epoch, seq), and the hour from which minute rollups are complete.
CREATE TABLE history (
    only_row     INTEGER PRIMARY KEY CHECK (only_row = 1),
    epoch        TEXT    NOT NULL,
    seq          INTEGER NOT NULL,
    minutes_from INTEGER NOT NULL
) STRICT;

-- Every key that has rollups.
CREATE TABLE series (
    id       INTEGER PRIMARY KEY,
    project  TEXT NOT NULL,
    strategy TEXT NOT NULL,
    provider TEXT NOT NULL,
    model    TEXT NOT NULL,             -- '' if unknown
    band     TEXT NOT NULL,             -- high, medium, low or none
    status   TEXT NOT NULL,
    UNIQUE (project, strategy, provider, model, band, status)
) STRICT;

-- n rises in the order of receipt; seq is the decision's commit.
CREATE TABLE decisions (
    n             INTEGER PRIMARY KEY,
    id            TEXT    NOT NULL,
    project       TEXT    NOT NULL,
    series        INTEGER NOT NULL REFERENCES series (id),
    seq           INTEGER NOT NULL,
    received      INTEGER NOT NULL,
    decided       INTEGER NOT NULL,
    confidence    INTEGER,              -- millionths
    cost          INTEGER,              -- nano-dollars
    latency       INTEGER,              -- microseconds
    input_tokens  INTEGER,
    output_tokens INTEGER,
    fallback      INTEGER NOT NULL,
    reason        TEXT
) STRICT;

-- A producer's id counts once within its project, for as long as the decision is kept.
CREATE UNIQUE INDEX decisions_id ON decisions (id, project);

-- Sums by period: 'total' (start 0), 'hour', 'minute' and 'pruned'. 'pruned' has, by hour, the
-- decisions that retention dropped; with it the remaining decisions can be compared with the hours.
CREATE TABLE rollups (
    period           TEXT    NOT NULL CHECK (period IN ('total', 'hour', 'minute', 'pruned')),
    start            INTEGER NOT NULL,
    series           INTEGER NOT NULL REFERENCES series (id),
    count            INTEGER NOT NULL,
    fallbacks        INTEGER NOT NULL,
    confidence_count INTEGER NOT NULL,
    confidence_sum   INTEGER NOT NULL,
    cost_count       INTEGER NOT NULL,
    cost_sum         INTEGER NOT NULL,
    latency_count    INTEGER NOT NULL,
    latency_sum      INTEGER NOT NULL,
    input_tokens     INTEGER NOT NULL,
    output_tokens    INTEGER NOT NULL,
    metered_cost     INTEGER NOT NULL,
    metered_input    INTEGER NOT NULL,
    metered_output   INTEGER NOT NULL,
    latency_bins     BLOB    NOT NULL,  -- as `histogram.pack` writes them
    PRIMARY KEY (period, start, series)
) STRICT, WITHOUT ROWID;
