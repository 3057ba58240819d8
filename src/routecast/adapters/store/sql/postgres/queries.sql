-- Lists of columns stand in braces, as in {key}: `columns.py` has them. What else is in braces is filled
-- in where the query is run.

-- name: version
-- Of the schema, and the least schema a program must know to work on it.
SELECT version, oldest_program FROM routecast.schema_version;

-- name: lock_schema
SELECT pg_advisory_xact_lock(1381254977, 0);

-- name: has_schema
SELECT to_regnamespace('routecast') IS NOT NULL;

-- name: create_schema
CREATE SCHEMA routecast;

-- name: create_version
CREATE TABLE IF NOT EXISTS routecast.schema_version (
    only_row       boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version        integer NOT NULL,
    oldest_program integer NOT NULL
);

-- name: set_version
INSERT INTO routecast.schema_version (version, oldest_program) VALUES ($1, $2)
ON CONFLICT (only_row) DO UPDATE SET version = $1, oldest_program = $2;

-- name: set_up
-- Set settings by name and value, for this transaction alone where $3 is true, and read them back;
-- and tell who answers: which process of which server (by when it started), and if it only reads.
SELECT name, set_config(name, value, $3), pg_backend_pid(), pg_postmaster_start_time(),
       current_setting('transaction_read_only') = 'on'
FROM unnest($1::text[], $2::text[]) AS wanted (name, value);

-- name: begin_commit
-- `current_epoch` is called after it, and so tells the epoch that this commit will be of. `history`
-- is as in `state`.
SELECT generation, oldest, pruned_commit, pruned_place, number,
       routecast.current_epoch() || (SELECT ' ' || tableoid || ' ' || xmin FROM routecast.history)
       AS history
FROM routecast.begin_commit();

-- name: known_ids
-- Which of the sent ids, counted from 1, older generations hold.
SELECT sent.number
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS sent (project, id, number)
JOIN routecast.decisions ON decisions.project = sent.project AND decisions.id = sent.id
WHERE generation < $3 AND (commit, place) >= ($4, $5);

-- name: stored_contents
-- What is stored under the sent ids: what a decision that is sent again is compared with.
SELECT decisions.id, decisions.project, series.status, series.model, decisions.cost
FROM unnest($1::text[], $2::text[]) AS sent (project, id)
JOIN routecast.decisions ON decisions.project = sent.project AND decisions.id = sent.id
JOIN routecast.series ON series.id = decisions.series
WHERE (commit, place) >= ($3, $4);

-- name: insert_new_decisions
-- Insert those whose ids the current generation does not hold, and tell their places.
INSERT INTO routecast.decisions_{generation} ({decision})
SELECT * FROM unnest({decision_arrays})
ON CONFLICT DO NOTHING RETURNING place;

-- name: write_delta
SELECT epoch, seq, transaction, (SELECT folded.seq FROM routecast.folded) AS folded
FROM routecast.write_delta($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: take_back
-- Delete decisions that this transaction has inserted.
DELETE FROM routecast.decisions_{generation} WHERE (project, id) IN (
    SELECT * FROM unnest($1::text[], $2::text[])
);

-- name: is_running
-- Whether a transaction has not come to its end. Fails where there was none of this name yet.
SELECT pg_xact_status($1::text::xid8) = 'in progress';

-- name: is_committed
SELECT EXISTS (SELECT FROM routecast.commits WHERE number = $1 AND token = $2);

-- name: check
-- A lock on a row is a write, too: its commit is synced.
SELECT 1 FROM routecast.history FOR UPDATE;

-- name: position
SELECT epoch, (SELECT coalesce(max(seq), 0) FROM routecast.deltas) AS seq FROM routecast.history;

-- name: add_series
-- In the order of their names, so that nodes that add the same ones cannot lock each other out.
INSERT INTO routecast.series ({key})
SELECT * FROM unnest({key_arrays}) AS sent ({key})
ORDER BY 1, 2, 3, 4, 5, 6
ON CONFLICT DO NOTHING;

-- name: series_numbers
-- The numbers of those sent series that there are, with their places, counted from 1.
SELECT sent.place, series.id
FROM unnest({key_arrays}) WITH ORDINALITY AS sent ({key}, place)
JOIN routecast.series USING ({key});

-- name: series_of
SELECT id, {key} FROM routecast.series WHERE id = ANY($1);

-- name: series
SELECT id, {key} FROM routecast.series;

-- name: state
-- As of when what is stored is: the epoch, the last commit in the rollups, what is kept. `history`
-- is the epoch and what the system calls its row: that is another one after an epoch began, and
-- after a program other than `routecast restore` put the tables back as they were.
SELECT epoch, folded.seq AS folded, largest, generation, oldest, pruned_commit, pruned_place,
       minutes_from, epoch || ' ' || history.tableoid || ' ' || history.xmin AS history
FROM routecast.history, routecast.folded, routecast.retention;

-- name: deltas
SELECT seq, packed FROM routecast.deltas WHERE seq > $1 ORDER BY seq;

-- name: some_deltas
-- From the first seq to the second, as many as come within so many bytes, and one at least.
SELECT seq, packed FROM (
    SELECT seq, packed, sum(length(packed)) OVER (ORDER BY seq) - length(packed) AS before
    FROM routecast.deltas WHERE seq > $1 AND seq <= $2
) AS counted
WHERE before < $3 ORDER BY seq;

-- name: rollups
-- The sums of one period whose start lies from the first to before the second moment.
SELECT start, series, {sums}
FROM routecast.rollups WHERE period = $1 AND start >= $2 AND start < $3;

-- name: rollups_at
-- The sums of certain series at certain starts of one period.
SELECT rollups.start, rollups.series, {sums}
FROM unnest($2::bigint[], $3::integer[]) AS wanted (start, series)
JOIN routecast.rollups
    ON period = $1 AND rollups.start = wanted.start AND rollups.series = wanted.series;

-- name: folded_totals
-- The sums over all time of certain series, as far as they are folded: with the last commit that is
-- folded, and the last one there is. One row without a series where there is none.
SELECT folded.seq AS folded,
       (SELECT coalesce(max(deltas.seq), folded.seq) FROM routecast.deltas) AS seq,
       rollups.series, {scalars}
FROM routecast.folded
LEFT JOIN routecast.rollups ON period = 'total' AND start = 0 AND series = ANY($1);

-- name: put_rollups
-- Whole new values: who holds the lock of the rollups has merged them.
INSERT INTO routecast.rollups (period, start, series, {sums})
SELECT $1, * FROM unnest($2::bigint[], $3::integer[], {sums_arrays_from_4})
ON CONFLICT (period, start, series) DO UPDATE SET ({sums}) = ROW ({sums_excluded});

-- name: lock_rollups
-- Only who holds it writes rollups and what is kept. It ends with the transaction.
SELECT pg_advisory_xact_lock(1381254977, 2);

-- name: try_lock_rollups
SELECT pg_try_advisory_xact_lock(1381254977, 2);

-- name: lock_history
SELECT FROM routecast.history FOR UPDATE;

-- name: set_folded
UPDATE routecast.folded SET seq = $1, largest = $2;

-- name: drop_deltas
-- Of those that are folded, up to $1: all but the last $2, and the oldest of these, so that all that
-- are left have about $3 bytes.
DELETE FROM routecast.deltas WHERE seq <= $1 AND seq <= greatest($1 - $2, (
    SELECT max(seq) FROM (
        SELECT seq, sum(length(packed)) OVER (ORDER BY seq DESC) AS bytes FROM routecast.deltas
    ) AS counted WHERE bytes > $3
));

-- name: begin_generation
SELECT routecast.begin_generation($1);

-- name: set_generation
-- Have the next generation be the one after another, for a restore: there are no commits.
UPDATE routecast.retention SET generation = $1;

-- name: drop_generation
SELECT routecast.drop_generation($1);

-- name: generation_span
-- When the first and the last commit of the generation were received; NULL where there is none.
SELECT (SELECT received FROM routecast.commits WHERE generation = $1
        ORDER BY number LIMIT 1) AS first,
       (SELECT received FROM routecast.commits WHERE generation = $1
        ORDER BY number DESC LIMIT 1) AS last;

-- name: span
-- When the first and the last commit were received that decisions are kept of, and the first minute
-- (microseconds); NULL where there is none.
SELECT (SELECT received FROM routecast.commits WHERE number >= retention.pruned_commit
        ORDER BY number LIMIT 1) AS first,
       (SELECT received FROM routecast.commits WHERE number >= retention.pruned_commit
        ORDER BY number DESC LIMIT 1) AS last,
       (SELECT min(start) * 1000000 FROM routecast.rollups WHERE period = 'minute') AS minute
FROM routecast.retention;

-- name: oldest_commits
-- In the order of receipt, of generations that are complete.
SELECT generation, number, received, decisions FROM routecast.commits
WHERE number >= $1 AND generation < $2 ORDER BY number LIMIT $3;

-- name: oldest_decisions
-- Of certain commits, from a place in the first of them on.
SELECT commit, place, {record_of_both}
FROM routecast.decisions JOIN routecast.series ON series.id = decisions.series
WHERE commit BETWEEN $1 AND $3 AND (commit, place) >= ($1, $2) AND generation BETWEEN $4 AND $5
ORDER BY commit, place LIMIT $6;

-- name: set_pruned
UPDATE routecast.retention SET pruned_commit = $1, pruned_place = $2;

-- name: is_pruned
-- Whether nothing of a generation is kept any more.
SELECT NOT EXISTS (SELECT FROM routecast.commits WHERE generation = $1 AND number >= $2);

-- name: oldest_minute
SELECT min(start) FROM routecast.rollups WHERE period = 'minute';

-- name: delete_minutes
-- Minutes that start from the first to before the second moment, at most so many rows.
WITH gone AS (
    DELETE FROM routecast.rollups WHERE (period, start, series) IN (
        SELECT period, start, series FROM routecast.rollups
        WHERE period = 'minute' AND start >= $1 AND start < $2 LIMIT $3
    ) RETURNING 1
)
SELECT count(*) FROM gone;

-- name: set_minutes_from
UPDATE routecast.retention SET minutes_from = greatest(minutes_from, $1);

-- name: count_decisions
SELECT count(*) FROM routecast.decisions WHERE (commit, place) >= ($1, $2);

-- name: latest_commit
-- The last one that decisions are kept of, by position.
SELECT coalesce(max(seq), 0) FROM routecast.commits;

-- name: stray_decisions
-- Decisions that are kept of no commit.
SELECT count(*) FROM routecast.decisions
WHERE (commit, place) >= ($1, $2)
  AND NOT EXISTS (SELECT FROM routecast.commits WHERE number = commit);

-- name: strays
-- What belongs to nothing, and how much of it there is. A decision keeps its true project beside a
-- series of `other`.
SELECT 'decisions of another project than their series', count(*)
FROM routecast.decisions JOIN routecast.series ON series.id = decisions.series
WHERE (commit, place) >= ($1, $2)
  AND series.project <> decisions.project AND series.project <> 'other'
UNION ALL
SELECT 'summaries along no part of a key', count(*) FROM routecast.summaries
WHERE part <> ALL ($3::text[])
UNION ALL
SELECT 'latency summaries of no summary', count(*) FROM routecast.latency_summaries AS latencies
WHERE NOT EXISTS (
    SELECT FROM routecast.summaries
    WHERE (summaries.part, summaries.start, summaries.name)
        = (latencies.part, latencies.start, latencies.name)
);

-- name: commit_numbers
-- The last number given to a commit, and the highest one that there is.
SELECT last_value AS given, (SELECT coalesce(max(number), 0) FROM routecast.commits) AS highest
FROM routecast.commit_numbers;

-- name: tables
-- All tables, and the names of their btree indexes.
SELECT format('%I.%I', 'routecast', relname) AS name, ARRAY(
    SELECT indexrelid::regclass::text FROM pg_index
    JOIN pg_class AS index ON index.oid = indexrelid JOIN pg_am ON pg_am.oid = index.relam
    WHERE indrelid = pg_class.oid AND amname = 'btree' ORDER BY 1
) AS indexes
FROM pg_class
WHERE relnamespace = 'routecast'::regnamespace AND relkind = 'r' ORDER BY relname;

-- name: read_by_index
-- Have this transaction read tables by their indexes ('on'), or not at all so ('off').
SELECT set_config('enable_indexonlyscan', $1, true), set_config('enable_indexscan', $1, true),
       set_config('enable_bitmapscan', 'off', true),
       set_config('enable_seqscan', CASE $1 WHEN 'on' THEN 'off' ELSE 'on' END, true);

-- name: count_rows
SELECT count(*) FROM {table};

-- name: amcheck
-- The schema of the extension that checks tables and indexes, where this user may use it.
SELECT format('%I', nspname) AS schema FROM pg_extension
JOIN pg_namespace ON pg_namespace.oid = extnamespace
WHERE extname = 'amcheck' AND has_function_privilege(
    format('%I.bt_index_check(regclass, boolean)', nspname), 'EXECUTE'
) AND has_function_privilege(
    format('%I.verify_heapam(regclass, boolean, boolean, text, bigint, bigint)', nspname), 'EXECUTE'
);

-- name: checksums
SELECT current_setting('data_checksums');

-- name: check_table
SELECT msg FROM {schema}.verify_heapam($1::text::regclass) LIMIT 1;

-- name: check_index
SELECT {schema}.bt_index_check($1::text::regclass, true);

-- name: recount
-- The rollups by minute as the decisions themselves give them; and a row with no series for each
-- hour that must be looked at in any case. $3 are the least values of a histogram's bins.
WITH by_bin AS (
    SELECT decided / 60000000 * 60 AS start, series,
           width_bucket(latency, $3::bigint[]) - 1 AS bin,
           count(*) AS count, count(*) FILTER (WHERE fallback) AS fallbacks,
           count(confidence) AS confidence_count, sum(confidence) AS confidence_sum,
           count(cost) AS cost_count, sum(cost) AS cost_sum,
           count(latency) AS latency_count, sum(latency) AS latency_sum,
           sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
           sum(cost) FILTER (WHERE metered) AS metered_cost,
           sum(input_tokens) FILTER (WHERE metered) AS metered_input,
           sum(output_tokens) FILTER (WHERE metered) AS metered_output
    FROM routecast.decisions, LATERAL (
        SELECT num_nulls(cost, input_tokens, output_tokens) = 0 AS metered
    ) AS known
    WHERE (commit, place) >= ($1, $2)
    GROUP BY 1, 2, 3
)
SELECT start, series, sum(count)::bigint, sum(fallbacks)::bigint,
       sum(confidence_count)::bigint, coalesce(sum(confidence_sum), 0)::bigint,
       sum(cost_count)::bigint, coalesce(sum(cost_sum), 0)::bigint,
       sum(latency_count)::bigint, coalesce(sum(latency_sum), 0)::bigint,
       coalesce(sum(input_tokens), 0)::bigint, coalesce(sum(output_tokens), 0)::bigint,
       coalesce(sum(metered_cost), 0)::bigint, coalesce(sum(metered_input), 0)::bigint,
       coalesce(sum(metered_output), 0)::bigint,
       array_agg(bin) FILTER (WHERE bin IS NOT NULL),
       array_agg(latency_count) FILTER (WHERE bin IS NOT NULL)
FROM by_bin GROUP BY start, series
UNION ALL
SELECT start, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL
FROM unnest($4::bigint[]) AS hours (start)
ORDER BY 1, 2;

-- name: hours
-- Every hour there are rollups of.
SELECT DISTINCT start FROM routecast.rollups WHERE period IN ('hour', 'pruned')
UNION SELECT DISTINCT start / 3600 * 3600 FROM routecast.rollups WHERE period = 'minute'
UNION SELECT start FROM routecast.summaries
UNION SELECT start FROM routecast.latency_summaries;

-- name: hour
-- All rollups within an hour.
SELECT period, start, series, {sums}
FROM routecast.rollups
WHERE period IN ('hour', 'pruned') AND start = $1
   OR period = 'minute' AND start >= $1 AND start < $1 + 3600;

-- name: dangers
-- Settings of the server that lose what was acknowledged, when it crashes.
SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off';

-- name: encoding
SELECT current_setting('server_encoding');

-- name: history_rollups
-- A period's rollups by series of a history and by bucket. $4 is the bucket's length in seconds,
-- $5 where buckets are counted from. Series are joined only where something of them is asked for;
-- rollups are summed up where there is a grouping.
SELECT {series} AS name, rollups.start - (rollups.start - $5) % $4 AS bucket, {values}
FROM routecast.rollups {join}
WHERE period = $1 AND rollups.start >= $2 AND rollups.start < $3 {filters}
{grouping};

-- name: history_series
JOIN routecast.series ON series.id = rollups.series

-- name: history_filter
AND series.{part} = ANY(${number}::text[])

-- name: history_unsummed
-- The same of those hours that summaries lack.
SELECT {series} AS name, rollups.start - (rollups.start - $5) % $4 AS bucket, {values}
FROM routecast.rollups {join}
WHERE period = $1
  AND rollups.start IN (SELECT start FROM routecast.unsummed_hours WHERE start >= $2 AND start < $3)
  {filters}
{grouping};

-- name: history_summaries
-- The same of those hours that they have; $1 is the part. Without $6, all of its names.
SELECT {series} AS name, start - (start - $5) % $4 AS bucket, {values}
FROM routecast.{table}
WHERE part = $1 AND start >= $2 AND start < $3
  AND start NOT IN (SELECT start FROM routecast.unsummed_hours)
  AND ($6::text[] IS NULL OR name = ANY($6))
{grouping};

-- name: unsummed_hours
-- Those that begin before a moment, oldest first.
SELECT start FROM routecast.unsummed_hours WHERE start < $1 ORDER BY start LIMIT $2;

-- name: drop_summaries
-- Of some hours, along all parts.
DELETE FROM routecast.summaries WHERE part = ANY($1::text[]) AND start = ANY($2::bigint[]);

-- name: drop_latency_summaries
DELETE FROM routecast.latency_summaries WHERE part = ANY($1::text[]) AND start = ANY($2::bigint[]);

-- name: put_summaries
INSERT INTO routecast.summaries (part, start, name, {points})
SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], {points_arrays_from_4});

-- name: put_latency_summaries
INSERT INTO routecast.latency_summaries (part, start, name, counts)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bytea[]);

-- name: hours_are_summed
DELETE FROM routecast.unsummed_hours WHERE start = ANY($1::bigint[]);

-- name: summaries
-- Of one hour, along all parts.
SELECT part, name, {points}, counts
FROM routecast.summaries LEFT JOIN routecast.latency_summaries USING (part, start, name)
WHERE part IN ({parts})
  AND start = $1;

-- name: window_sums
-- The sums by series of one period's rollups that start from the first to before the second moment.
SELECT series, {scalars_added}
FROM routecast.rollups WHERE period = $1 AND start >= $2 AND start < $3 GROUP BY series;

-- name: window_bins
SELECT series, latency_bins FROM routecast.rollups WHERE period = $1 AND start >= $2 AND start < $3;

-- name: window_counts
SELECT start, series, count
FROM routecast.rollups WHERE period = 'minute' AND start >= $1 AND start < $2;

-- name: folded_names
SELECT part, name FROM routecast.folded_names;

-- name: counting
-- `history` is as in `state`; and the names that are folded in it.
SELECT epoch || ' ' || tableoid || ' ' || xmin AS history, coalesce(
    (SELECT array_agg(ARRAY[part, name]) FROM routecast.folded_names), ARRAY[]::text[]
) AS folded FROM routecast.history;

-- name: remember_names
INSERT INTO routecast.folded_names (part, name) SELECT $1, * FROM unnest($2::text[])
ON CONFLICT DO NOTHING;

-- name: forget_names
DELETE FROM routecast.folded_names WHERE part = $1 AND name = ANY($2::text[]);

-- name: begin_epoch
UPDATE routecast.history SET epoch = replace(gen_random_uuid()::text, '-', '') RETURNING epoch;

-- name: lock_commits
-- Waits for the commits under way, and keeps others from beginning. It ends with the transaction.
SELECT pg_advisory_xact_lock(1381254977, 1);

-- name: wait_for_locks
-- Wait for a lock for so long within this transaction.
SELECT set_config('lock_timeout', $1, true);

-- name: limit_idle
-- End the session if it waits for its client for so long within this transaction.
SELECT set_config('idle_in_transaction_session_timeout', $1, true);

-- name: raise_largest
UPDATE routecast.folded SET largest = greatest(largest, $1);

-- name: series_counts
SELECT series, count FROM routecast.rollups WHERE period = 'total' AND start = 0;

-- name: name_hours
-- The first and the last hour that each name of some parts was seen in, of hours summed up.
SELECT part, name, min(start), max(start) FROM routecast.summaries
WHERE part = ANY($1::text[]) AND start NOT IN (SELECT start FROM routecast.unsummed_hours)
GROUP BY part, name;

-- name: unsummed_series_hours
-- The same of each series, of the other hours.
SELECT series, min(start), max(start) FROM routecast.rollups
WHERE period = 'hour' AND start IN (SELECT start FROM routecast.unsummed_hours) GROUP BY series;

-- name: starts_of_series
-- The starts at which a period has rollups of certain series, and of how many.
SELECT start, count(*) FROM routecast.rollups WHERE period = $1 AND series = ANY($2::integer[])
GROUP BY start ORDER BY start;

-- name: take_rollups_of_series
-- Delete a period's rollups of certain series at certain starts, and return them.
DELETE FROM routecast.rollups
WHERE period = $1 AND start = ANY($2::bigint[]) AND series = ANY($3::integer[])
RETURNING start, series, {sums};

-- name: move_decisions
-- Decisions of old series become those of new ones.
UPDATE routecast.decisions SET series = moved.new
FROM unnest($1::integer[], $2::integer[]) AS moved (old, new)
WHERE decisions.series = moved.old;

-- name: all_tables
-- Every table with its columns in order; of one in partitions, only the whole.
SELECT relname AS name, ARRAY(
    SELECT attname::text FROM pg_attribute
    WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
) AS columns
FROM pg_class
WHERE relnamespace = 'routecast'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
ORDER BY relname;

-- name: all_rows
SELECT {columns} FROM routecast.{name}

-- name: size
-- Of all tables, in bytes, without their indexes.
SELECT coalesce(sum(pg_table_size(oid)), 0)::bigint
FROM pg_class WHERE relnamespace = 'routecast'::regnamespace AND relkind = 'r';

-- name: all_sequences
-- Every sequence, with the last number it gave; NULL where it gave none.
SELECT sequencename::text AS name, last_value FROM pg_sequences WHERE schemaname = 'routecast';

-- name: set_sequence
SELECT setval(format('routecast.%I', $1::text)::regclass, $2);

-- name: others_connected
-- Sessions of this database but this one, by what they say they are.
SELECT coalesce(nullif(application_name, ''), 'a program without a name') AS name, count(*)
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL
  AND coalesce(backend_type, 'client backend') = 'client backend'
GROUP BY 1 ORDER BY 1;

-- name: forget_activity
-- Have this transaction look again at who is connected.
SELECT pg_stat_clear_snapshot();

-- name: rename_schema
ALTER SCHEMA routecast RENAME TO {name};

-- name: drop_schema
DROP SCHEMA routecast CASCADE;

-- name: empty_table
DELETE FROM routecast.{name};
