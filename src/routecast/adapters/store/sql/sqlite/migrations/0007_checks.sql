-- The value that `/ready` changes and syncs; nothing else uses it. It rises each time, because
-- setting the same value again would write nothing.
CREATE TABLE checks (number INTEGER NOT NULL) STRICT;
INSERT INTO checks VALUES (0);
