-- oldest program: 1
-- Summaries: the rollups of an hour, summed along one part of the key, so that a history need not
-- read every key of every hour. `part` is the name of the part and `name` its value, or both are
-- 'all'.
CREATE TABLE summaries (
    part             text COLLATE "C" NOT NULL,
    start            bigint  NOT NULL,
    name             text COLLATE "C" NOT NULL,
    errors           bigint  NOT NULL,
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
    PRIMARY KEY (part, start, name)
);

-- The latency histograms of the summaries, as `histogram.pack_counts` writes them. They have their
-- own table because most histories do not need them.
CREATE TABLE latency_summaries (
    part   text COLLATE "C" NOT NULL,
    start  bigint NOT NULL,
    name   text COLLATE "C" NOT NULL,
    counts bytea NOT NULL,
    PRIMARY KEY (part, start, name)
);

-- Hours whose summaries are missing or out of date; their rollups must be read instead. Triggers
-- add them, so that programs of an older schema can still fold deltas.
CREATE TABLE unsummed_hours (
    start bigint PRIMARY KEY
);
INSERT INTO unsummed_hours SELECT DISTINCT start FROM rollups WHERE period = 'hour';

CREATE FUNCTION note_unsummed_hours() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO unsummed_hours SELECT DISTINCT start FROM written WHERE period = 'hour'
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER inserted AFTER INSERT ON rollups REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION note_unsummed_hours();
CREATE TRIGGER updated AFTER UPDATE ON rollups REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION note_unsummed_hours();
