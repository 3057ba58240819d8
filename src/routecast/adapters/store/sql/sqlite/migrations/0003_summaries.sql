-- Summaries: the rollups of an hour, summed along one part of the key, so that a history need not
-- read every key of every hour. `part` is the name of the part and `name` its value, or both are
-- 'all'.
CREATE TABLE summaries (
    part             TEXT    NOT NULL,
    start            INTEGER NOT NULL,
    name             TEXT    NOT NULL,
    errors           INTEGER NOT NULL,
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
    PRIMARY KEY (part, start, name)
) STRICT, WITHOUT ROWID;

-- The latency histograms of the summaries, as `histogram.pack_counts` writes them. They have their
-- own table because most histories do not need them.
CREATE TABLE latency_summaries (
    part   TEXT NOT NULL,
    start  INTEGER NOT NULL,
    name   TEXT NOT NULL,
    counts BLOB NOT NULL,
    PRIMARY KEY (part, start, name)
) STRICT, WITHOUT ROWID;

-- Hours whose summaries are missing or out of date; their rollups must be read instead.
CREATE TABLE unsummed_hours (
    start INTEGER PRIMARY KEY
) STRICT;
INSERT INTO unsummed_hours SELECT DISTINCT start FROM rollups WHERE period = 'hour';
