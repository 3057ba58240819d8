-- A delta is kept in parts of a bounded number of cells, so that it can be folded in steps.
-- `largest`: no sum in the part is over this.
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

-- The rollups hold the commits up to `folded`, and so many parts of the next one. No total in them
-- is over `largest`.
ALTER TABLE history ADD COLUMN folded_parts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE history ADD COLUMN largest INTEGER NOT NULL DEFAULT 0;
UPDATE history SET largest = (
    SELECT coalesce(max(max(
        count, confidence_sum, cost_sum, latency_sum, input_tokens, output_tokens
    )), 0) FROM rollups WHERE period = 'total'
);

-- Rises each time that something is added to the hour: summaries are made beside commits, and are
-- kept only if the hour is still as it was read.
ALTER TABLE unsummed_hours ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;
