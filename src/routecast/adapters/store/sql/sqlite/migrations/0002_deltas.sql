-- What each commit added to the rollups, as `Delta.pack` wrote it: written with the commit, merged
-- into the rollups with some later one, and kept a while for those who missed it.
CREATE TABLE deltas (
    seq    INTEGER PRIMARY KEY,
    packed BLOB    NOT NULL
) STRICT;

-- The rollups hold the commits up to this seq; the deltas after it are still to be added.
ALTER TABLE history ADD COLUMN folded INTEGER NOT NULL DEFAULT 0;
UPDATE history SET folded = seq;
