-- Deltas, as `Delta.pack` writes them. They are written with their commit, folded into the rollups
-- by a later one, and kept for some time for readers that missed them.
CREATE TABLE deltas (
    seq    INTEGER PRIMARY KEY,
    packed BLOB    NOT NULL
) STRICT;

-- The rollups contain the commits up to this seq; later deltas must still be folded.
ALTER TABLE history ADD COLUMN folded INTEGER NOT NULL DEFAULT 0;
UPDATE history SET folded = seq;
