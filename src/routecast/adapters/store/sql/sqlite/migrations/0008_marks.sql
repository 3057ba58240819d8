-- What tells whether a write-ahead log belongs to this file (`store/sqlite/marks.py`), whether the
-- file is a copy (its schema version is not this one), and whether it was closed in good order.
CREATE TABLE marks (
    mark           BLOB    NOT NULL,
    schema_version INTEGER NOT NULL,
    open           INTEGER NOT NULL
) STRICT;
