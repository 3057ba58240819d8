-- oldest program: 1
-- Summaries beyond 64 bits, and `write_delta`, which checks sums by series instead of all together.

ALTER TABLE summaries
    ALTER confidence_sum TYPE numeric,
    ALTER cost_sum       TYPE numeric,
    ALTER latency_sum    TYPE numeric,
    ALTER input_tokens   TYPE numeric,
    ALTER output_tokens  TYPE numeric;

-- Series with a total of 2^62 or more, which is near the limit of 64 bits. Triggers add them, so
-- that programs of an older schema can still fold deltas.
CREATE TABLE near_series (
    series integer PRIMARY KEY
);
INSERT INTO near_series SELECT series FROM rollups
WHERE period = 'total' AND greatest(
    confidence_sum, cost_sum, latency_sum, input_tokens, output_tokens
) >= 4611686018427387904;

CREATE FUNCTION note_near_series() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO near_series SELECT series FROM written
    WHERE period = 'total' AND greatest(
        confidence_sum, cost_sum, latency_sum, input_tokens, output_tokens
    ) >= 4611686018427387904
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER near_inserted AFTER INSERT ON rollups REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION note_near_series();
CREATE TRIGGER near_updated AFTER UPDATE ON rollups REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION note_near_series();

-- The successor of `add_delta`, which older programs still call. Fails with
-- numeric_value_out_of_range if a sum of one of the commit's own series (`touched`) may exceed 64
-- bits. With `exact` it does not check: the caller has checked the sums, and has held the row lock of
-- `history` since. One statement reads `folded`, the deltas and the series near their limit, so that
-- it sees them as of one moment, also while another node folds.
CREATE FUNCTION write_delta(
    generation integer, number bigint, received bigint, token bigint, decisions integer,
    largest bigint, packed bytea, exact boolean, touched integer[],
    OUT epoch text, OUT seq bigint, OUT transaction text
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT h.epoch INTO epoch FROM history AS h FOR UPDATE;
    IF NOT exact AND (
        SELECT write_delta.largest + coalesce(
                (SELECT sum(d.largest) FROM deltas AS d WHERE d.seq > f.seq), 0
            ) >= 4611686018427387904
            OR EXISTS (SELECT FROM near_series AS n WHERE n.series = ANY(touched))
        FROM folded AS f
    ) THEN
        RAISE numeric_value_out_of_range USING MESSAGE = 'a sum may be at its limit of 64 bits';
    END IF;
    SELECT coalesce(max(d.seq), 0) + 1 INTO seq FROM deltas AS d;
    INSERT INTO deltas VALUES (seq, largest, packed);
    INSERT INTO commits VALUES (generation, decisions, number, seq, received, token);
    transaction := pg_current_xact_id()::text;
END $$;
