-- A delta is kept in parts of a bounded number of cells, so that it can be folded in steps.
-- `largest`: no sum of a series grows by more when the part is folded.
ALTER TABLE deltas RENAME TO whole_deltas;
CREATE TABLE deltas (
    seq     INTEGER NOT NULL,
    part    INTEGER NOT NULL,
    cells   INTEGER NOT NULL,
    largest INTEGER NOT NULL,
    packed  BLOB    NOT NULL,
    PRIMARY KEY (seq, part)
) STRICT;
-- Of these it is not known how large their sums are: the next commit folds them all.
INSERT INTO deltas SELECT seq, 0, 1, 9223372036854775807, packed FROM whole_deltas;
DROP TABLE whole_deltas;

-- The rollups hold the commits up to `folded`, and so many parts of the next one.
ALTER TABLE history ADD COLUMN folded_parts INTEGER NOT NULL DEFAULT 0;

-- Series with a sum over all time that is near its limit of 64 bits: there are few.
CREATE INDEX near_series ON rollups (series) WHERE period = 'total'
    AND max(confidence_sum, cost_sum, latency_sum, input_tokens, output_tokens)
        >= 4611686018427387904;

-- Rises each time that something is added to the hour: summaries are made beside commits, and are
-- kept only if the hour is still as it was read.
ALTER TABLE unsummed_hours ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;
