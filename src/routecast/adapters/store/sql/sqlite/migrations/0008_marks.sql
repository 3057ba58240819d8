-- The mark, by which a write-ahead log is matched with this file (`store/sqlite/marks.py`). The
-- file is a copy if its schema version differs from `schema_version`; `open` is 0 after a clean
-- close.
CREATE TABLE marks (
    mark           BLOB    NOT NULL,
    schema_version INTEGER NOT NULL,
    open           INTEGER NOT NULL
) STRICT;
