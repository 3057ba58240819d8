-- Rollups of an hour summed up along one part of their keys, so that history need not read every
-- key of every hour: `part` is a part's name and `name` its value; or both are 'all'.
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

-- Their latency histograms, as `histogram.pack_counts` writes them: most histories need none.
CREATE TABLE latency_summaries (
    part   TEXT NOT NULL,
    start  INTEGER NOT NULL,
    name   TEXT NOT NULL,
    counts BLOB NOT NULL,
    PRIMARY KEY (part, start, name)
) STRICT, WITHOUT ROWID;

-- Hours whose summaries are not there, or not up to date: their rollups have to be read.
CREATE TABLE unsummed_hours (
    start INTEGER PRIMARY KEY
) STRICT;
INSERT INTO unsummed_hours SELECT DISTINCT start FROM rollups WHERE period = 'hour';
