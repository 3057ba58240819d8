-- oldest program: 1
-- The first schema: decisions, commits, deltas, rollups and the functions that a commit calls.
--
-- Times are microseconds since 1970 in decisions and commits, and seconds since 1970 in rollups
-- (`start`).

-- One row: the epoch. A commit locks it last of all; so commits get their positions in turn.
CREATE TABLE history (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch    text    NOT NULL
);

-- One row: what retention keeps. Decisions are in partitions from `oldest` to `generation`; commits
-- write to `generation`. Decisions before (pruned_commit, pruned_place) are dropped, though their
-- partition may still exist. Minute rollups are complete from the hour `minutes_from` on.
CREATE TABLE retention (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    generation    integer NOT NULL,
    oldest        integer NOT NULL,
    pruned_commit bigint  NOT NULL,
    pruned_place  integer NOT NULL,
    minutes_from  bigint  NOT NULL
);

-- Every key that has rollups.
CREATE TABLE series (
    id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project  text COLLATE "C" NOT NULL,
    strategy text COLLATE "C" NOT NULL,
    provider text COLLATE "C" NOT NULL,
    model    text COLLATE "C" NOT NULL,  -- '' if unknown
    band     text COLLATE "C" NOT NULL,  -- high, medium, low or none
    status   text COLLATE "C" NOT NULL,
    UNIQUE (project, strategy, provider, model, band, status)
);

-- Numbers of commits rise from one generation to the next. Within a generation their order is not
-- the order of the commits; `seq` is. After a crash, the number of a lost commit may be used again;
-- its token is not.
CREATE SEQUENCE commit_numbers;

CREATE TABLE commits (
    generation integer NOT NULL,
    decisions  integer NOT NULL,  -- the number of its decisions
    number     bigint  NOT NULL,
    seq        bigint  NOT NULL,
    received   bigint  NOT NULL,
    token      bigint  NOT NULL   -- random: identifies the commit
) PARTITION BY LIST (generation);
CREATE INDEX ON commits (number);

-- `series` is an id of the table `series`. A foreign key would cost more than the row itself.
CREATE TABLE decisions (
    generation    integer NOT NULL,
    place         integer NOT NULL,  -- within its commit
    commit        bigint  NOT NULL,  -- commits.number
    series        integer NOT NULL,
    confidence    integer,           -- millionths
    decided       bigint  NOT NULL,
    cost          bigint,            -- nano-dollars
    latency       bigint,            -- microseconds
    input_tokens  integer,
    output_tokens integer,
    fallback      boolean NOT NULL,
    id            text COLLATE "C" NOT NULL,
    project       text COLLATE "C" NOT NULL,
    reason        text
) PARTITION BY LIST (generation);
-- Retention reads decisions by commit; the rows on disk have the same order.
CREATE INDEX ON decisions USING brin (commit) WITH (autosummarize = on);

-- The deltas, as `Delta.pack` wrote them before `seq` was known. They are folded into the rollups
-- later, and kept for some time for nodes that missed them.
CREATE TABLE deltas (
    seq     bigint PRIMARY KEY,
    largest bigint NOT NULL,  -- no sum of the delta is larger
    packed  bytea  NOT NULL
);
ALTER TABLE deltas ALTER packed SET STORAGE EXTERNAL;

-- One row: the rollups contain the commits up to `seq`, and no total in them is over `largest`.
CREATE TABLE folded (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    seq      bigint  NOT NULL,
    largest  bigint  NOT NULL
);

-- Sums by period: 'total' (start 0), 'hour', 'minute' and 'pruned'. 'pruned' has, by hour, the
-- decisions that retention dropped; with it the remaining decisions can be compared with the hours.
CREATE TABLE rollups (
    period           text COLLATE "C" NOT NULL
                     CHECK (period IN ('total', 'hour', 'minute', 'pruned')),
    start            bigint  NOT NULL,
    series           integer NOT NULL,
    count            bigint  NOT NULL,
    fallbacks        bigint  NOT NULL,
    confidence_count bigint  NOT NULL,
    confidence_sum   bigint  NOT NULL,
    cost_count       bigint  NOT NULL,
    cost_sum         bigint  NOT NULL,
    latency_count    bigint  NOT NULL,
    latency_sum      bigint  NOT NULL,
    input_tokens     bigint  NOT NULL,
    output_tokens    bigint  NOT NULL,
    metered_cost     bigint  NOT NULL,
    metered_input    bigint  NOT NULL,
    metered_output   bigint  NOT NULL,
    latency_bins     bytea   NOT NULL,   -- as `histogram.pack` writes them
    PRIMARY KEY (period, start, series)
) WITH (fillfactor = 80);

-- Begin a commit: lock the generation, so that it ends only after this transaction, and take a
-- number. All open commits write to the same partition, and its unique index makes an id count
-- once. Older partitions do not change.
CREATE FUNCTION begin_commit(
    OUT generation integer, OUT oldest integer,
    OUT pruned_commit bigint, OUT pruned_place integer, OUT number bigint
) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1381254977, 1);
    SELECT r.generation, r.oldest, r.pruned_commit, r.pruned_place, nextval('commit_numbers')
    INTO generation, oldest, pruned_commit, pruned_place, number FROM retention AS r;
END $$;

-- Take the next position and write the delta, as the last step of a commit. The lock comes first,
-- in its own statement, because a statement sees the database as of its beginning. Fails with
-- numeric_value_out_of_range if a sum may exceed 64 bits.
CREATE FUNCTION add_delta(
    generation integer, number bigint, received bigint, token bigint, decisions integer,
    largest bigint, packed bytea, exact boolean,
    OUT epoch text, OUT seq bigint, OUT transaction text
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT h.epoch INTO epoch FROM history AS h FOR UPDATE;
    IF NOT exact AND add_delta.largest + f.largest + coalesce(
            (SELECT sum(d.largest) FROM deltas AS d WHERE d.seq > f.seq), 0) > 9223372036854775807
       FROM folded AS f THEN
        RAISE numeric_value_out_of_range USING MESSAGE = 'a sum may be at its limit of 64 bits';
    END IF;
    SELECT coalesce(max(d.seq), 0) + 1 INTO seq FROM deltas AS d;
    INSERT INTO deltas VALUES (seq, largest, packed);
    INSERT INTO commits VALUES (generation, decisions, number, seq, received, token);
    transaction := pg_current_xact_id()::text;
END $$;

-- Begin the generation after `after`, unless another node has begun it. Waits for open commits.
CREATE FUNCTION begin_generation(after integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    next integer := after + 1;
BEGIN
    PERFORM pg_advisory_xact_lock(1381254977, 1);
    IF after IS DISTINCT FROM (SELECT generation FROM retention) THEN
        RETURN;
    END IF;
    -- Attaching a table blocks no other session; creating the partition in place would.
    EXECUTE format('CREATE TABLE commits_%s (LIKE commits INCLUDING ALL)', next);
    EXECUTE format('ALTER TABLE commits ATTACH PARTITION commits_%1$s FOR VALUES IN (%1$s)', next);
    EXECUTE format('CREATE TABLE decisions_%s (LIKE decisions INCLUDING ALL)', next);
    EXECUTE format('CREATE UNIQUE INDEX ON decisions_%s (project, id)', next);
    EXECUTE format(
        'ALTER TABLE decisions ATTACH PARTITION decisions_%1$s FOR VALUES IN (%1$s)', next);
    UPDATE retention SET generation = next;
END $$;

-- Drop the oldest generation; all of its decisions must be pruned. Fails instead of waiting for
-- readers.
CREATE FUNCTION drop_generation(which integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', '100ms', true);
    UPDATE retention SET oldest = which + 1 WHERE oldest = which AND which < generation;
    IF FOUND THEN
        EXECUTE format('DROP TABLE decisions_%s', which);
        EXECUTE format('DROP TABLE commits_%s', which);
    END IF;
END $$;

INSERT INTO history (epoch) VALUES (replace(gen_random_uuid()::text, '-', ''));
INSERT INTO retention (generation, oldest, pruned_commit, pruned_place, minutes_from)
VALUES (0, 1, 0, 0, 0);
INSERT INTO folded (seq, largest) VALUES (0, 0);
SELECT begin_generation(0);
