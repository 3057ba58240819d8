-- What readiness changes and syncs: a value that nothing else depends on. Setting one to what it is
-- already writes nothing.
CREATE TABLE checks (number INTEGER NOT NULL) STRICT;
INSERT INTO checks VALUES (0);
