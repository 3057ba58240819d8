-- Deltas in parts with a limited number of cells, so that a delta can be folded in steps; and
-- series near the limit of 64 bits.

-- `largest`: folding the part adds at most this to any sum of a series.
ALTER TABLE deltas RENAME TO whole_deltas;
CREATE TABLE deltas (
    seq     INTEGER NOT NULL,
    part    INTEGER NOT NULL,
    cells   INTEGER NOT NULL,
    largest INTEGER NOT NULL,
    packed  BLOB    NOT NULL,
    PRIMARY KEY (seq, part)
) STRICT;
-- The sums of these deltas may have any size, so the next commit folds all of them.
INSERT INTO deltas SELECT seq, 0, 1, 9223372036854775807, packed FROM whole_deltas;
DROP TABLE whole_deltas;

-- The rollups contain the commits up to `folded`, and this number of parts of the next one.
ALTER TABLE history ADD COLUMN folded_parts INTEGER NOT NULL DEFAULT 0;

-- The few series with a total near the limit of 64 bits.
CREATE INDEX near_series ON rollups (series) WHERE period = 'total'
    AND max(confidence_sum, cost_sum, latency_sum, input_tokens, output_tokens)
        >= 4611686018427387904;

-- Rises with each change of the hour. Summaries are made while commits go on, and are kept only if
-- the hour has not changed since it was read.
ALTER TABLE unsummed_hours ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;
