-- The named queries of the PostgreSQL store, in sections that begin with "name:".
--
-- A name in braces such as {key} is a list of columns from `columns.py`. The caller of the query
-- replaces all other names in braces.

-- name: version
-- The schema's version, and the oldest schema that a program must know to use it.
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
-- Set settings by name and value, only for this transaction if $3 is true, and read them back. Also
-- return the server's process, the time the server started, and whether it is read-only.
SELECT name, set_config(name, value, $3), pg_backend_pid(), pg_postmaster_start_time(),
       current_setting('transaction_read_only') = 'on'
FROM unnest($1::text[], $2::text[]) AS wanted (name, value);

-- name: begin_commit
-- `current_epoch` is called after `begin_commit`, so it returns the epoch of this commit. `history`
-- is as in `state`.
SELECT generation, oldest, pruned_commit, pruned_place, number,
       routecast.current_epoch() || (SELECT ' ' || tableoid || ' ' || xmin FROM routecast.history)
       AS history
FROM routecast.begin_commit();

-- name: known_ids
-- The sent ids that older generations contain, by their numbers in the arrays, from 1.
SELECT sent.number
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS sent (project, id, number)
JOIN routecast.decisions ON decisions.project = sent.project AND decisions.id = sent.id
WHERE generation < $3 AND (commit, place) >= ($4, $5);

-- name: stored_contents
-- The stored contents of the sent ids, to compare repeated decisions with.
SELECT decisions.id, decisions.project, series.status, series.model, decisions.cost
FROM unnest($1::text[], $2::text[]) AS sent (project, id)
JOIN routecast.decisions ON decisions.project = sent.project AND decisions.id = sent.id
JOIN routecast.series ON series.id = decisions.series
WHERE (commit, place) >= ($3, $4);

-- name: insert_new_decisions
-- Insert the decisions whose ids the current generation does not contain; return their places.
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
-- Whether a transaction has not ended. Fails if there was no transaction of this number.
SELECT pg_xact_status($1::text::xid8) = 'in progress';

-- name: is_committed
SELECT EXISTS (SELECT FROM routecast.commits WHERE number = $1 AND token = $2);

-- name: check
-- Locking a row is a write, so its commit is synced.
SELECT 1 FROM routecast.history FOR UPDATE;

-- name: position
SELECT epoch, (SELECT coalesce(max(seq), 0) FROM routecast.deltas) AS seq FROM routecast.history;

-- name: add_series
-- In the order of their names, so that nodes that add the same series cannot deadlock.
INSERT INTO routecast.series ({key})
SELECT * FROM unnest({key_arrays}) AS sent ({key})
ORDER BY 1, 2, 3, 4, 5, 6
ON CONFLICT DO NOTHING;

-- name: series_numbers
-- The numbers of the sent series that exist, with their places in the array, from 1.
SELECT sent.place, series.id
FROM unnest({key_arrays}) WITH ORDINALITY AS sent ({key}, place)
JOIN routecast.series USING ({key});

-- name: series_of
SELECT id, {key} FROM routecast.series WHERE id = ANY($1);

-- name: series
SELECT id, {key} FROM routecast.series;

-- name: state
-- The epoch, the last commit in the rollups, and what retention keeps. `history` is the epoch with
-- the system's identifiers of its row. It changes when an epoch begins, and also when a program
-- other than `routecast restore` restores the tables.
SELECT epoch, folded.seq AS folded, largest, generation, oldest, pruned_commit, pruned_place,
       minutes_from, epoch || ' ' || history.tableoid || ' ' || history.xmin AS history
FROM routecast.history, routecast.folded, routecast.retention;

-- name: deltas
SELECT seq, packed FROM routecast.deltas WHERE seq > $1 ORDER BY seq;

-- name: some_deltas
-- The deltas after seq $1, up to $2: at most about $3 bytes, and at least one.
SELECT seq, packed FROM (
    SELECT seq, packed, sum(length(packed)) OVER (ORDER BY seq) - length(packed) AS before
    FROM routecast.deltas WHERE seq > $1 AND seq <= $2
) AS counted
WHERE before < $3 ORDER BY seq;

-- name: rollups
-- The sums of one period that start at $2 or later, and before $3.
SELECT start, series, {sums}
FROM routecast.rollups WHERE period = $1 AND start >= $2 AND start < $3;

-- name: rollups_at
-- The sums of certain series at certain starts of one period.
SELECT rollups.start, rollups.series, {sums}
FROM unnest($2::bigint[], $3::integer[]) AS wanted (start, series)
JOIN routecast.rollups
    ON period = $1 AND rollups.start = wanted.start AND rollups.series = wanted.series;

-- name: folded_totals
-- The folded totals of certain series, with the last folded commit and the newest commit. If none
-- of the series has a total, one row without a series.
SELECT folded.seq AS folded,
       (SELECT coalesce(max(deltas.seq), folded.seq) FROM routecast.deltas) AS seq,
       rollups.series, {scalars}
FROM routecast.folded
LEFT JOIN routecast.rollups ON period = 'total' AND start = 0 AND series = ANY($1);

-- name: put_rollups
-- Replace whole rows. The holder of the lock of the rollups has merged the sums.
INSERT INTO routecast.rollups (period, start, series, {sums})
SELECT $1, * FROM unnest($2::bigint[], $3::integer[], {sums_arrays_from_4})
ON CONFLICT (period, start, series) DO UPDATE SET ({sums}) = ROW ({sums_excluded});

-- name: lock_rollups
-- Only the holder of this lock writes rollups and `retention`. The transaction's end releases it.
SELECT pg_advisory_xact_lock(1381254977, 2);

-- name: try_lock_rollups
SELECT pg_try_advisory_xact_lock(1381254977, 2);

-- name: lock_history
SELECT FROM routecast.history FOR UPDATE;

-- name: set_folded
UPDATE routecast.folded SET seq = $1, largest = $2;

-- name: drop_deltas
-- Of the folded deltas up to $1, keep the last $2, and of those only the newest that have about $3
-- bytes together.
DELETE FROM routecast.deltas WHERE seq <= $1 AND seq <= greatest($1 - $2, (
    SELECT max(seq) FROM (
        SELECT seq, sum(length(packed)) OVER (ORDER BY seq DESC) AS bytes FROM routecast.deltas
    ) AS counted WHERE bytes > $3
));

-- name: begin_generation
SELECT routecast.begin_generation($1);

-- name: set_generation
-- Set the current generation, for a restore, while there are no commits.
UPDATE routecast.retention SET generation = $1;

-- name: drop_generation
SELECT routecast.drop_generation($1);

-- name: generation_span
-- The times of receipt of the generation's first and last commit; NULL if there is none.
SELECT (SELECT received FROM routecast.commits WHERE generation = $1
        ORDER BY number LIMIT 1) AS first,
       (SELECT received FROM routecast.commits WHERE generation = $1
        ORDER BY number DESC LIMIT 1) AS last;

-- name: span
-- The times of receipt of the first and the last commit whose decisions are kept, and the first
-- minute, in microseconds; NULL if there is none.
SELECT (SELECT received FROM routecast.commits WHERE number >= retention.pruned_commit
        ORDER BY number LIMIT 1) AS first,
       (SELECT received FROM routecast.commits WHERE number >= retention.pruned_commit
        ORDER BY number DESC LIMIT 1) AS last,
       (SELECT min(start) * 1000000 FROM routecast.rollups WHERE period = 'minute') AS minute
FROM routecast.retention;

-- name: oldest_commits
-- The oldest commits of complete generations, in the order of receipt.
SELECT generation, number, received, decisions FROM routecast.commits
WHERE number >= $1 AND generation < $2 ORDER BY number LIMIT $3;

-- name: oldest_decisions
-- The decisions of a range of commits, from a place in the first commit on.
SELECT commit, place, {record_of_both}
FROM routecast.decisions JOIN routecast.series ON series.id = decisions.series
WHERE commit BETWEEN $1 AND $3 AND (commit, place) >= ($1, $2) AND generation BETWEEN $4 AND $5
ORDER BY commit, place LIMIT $6;

-- name: set_pruned
UPDATE routecast.retention SET pruned_commit = $1, pruned_place = $2;

-- name: is_pruned
-- Whether all decisions of a generation are pruned.
SELECT NOT EXISTS (SELECT FROM routecast.commits WHERE generation = $1 AND number >= $2);

-- name: oldest_minute
SELECT min(start) FROM routecast.rollups WHERE period = 'minute';

-- name: delete_minutes
-- Delete minutes that start at $1 or later and before $2, at most $3 rows.
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
-- The seq of the newest commit whose decisions are kept.
SELECT coalesce(max(seq), 0) FROM routecast.commits;

-- name: stray_decisions
-- The number of decisions without a commit.
SELECT count(*) FROM routecast.decisions
WHERE (commit, place) >= ($1, $2)
  AND NOT EXISTS (SELECT FROM routecast.commits WHERE number = commit);

-- name: strays
-- Rows that belong to nothing, with their number. A decision of a series of `other` keeps its own
-- project.
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
-- The last number that a commit was given, and the highest number that is stored.
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
-- Make this transaction read tables only by their indexes ('on'), or without them ('off').
SELECT set_config('enable_indexonlyscan', $1, true), set_config('enable_indexscan', $1, true),
       set_config('enable_bitmapscan', 'off', true),
       set_config('enable_seqscan', CASE $1 WHEN 'on' THEN 'off' ELSE 'on' END, true);

-- name: count_rows
SELECT count(*) FROM {table};

-- name: amcheck
-- The schema of the extension amcheck, if this user may use it.
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
-- The rollups by minute, recounted from the decisions, and a row without a series for each hour in
-- $4, which is compared in any case. $3 has the lowest values of a histogram's bins.
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
-- Every hour that has rollups or summaries.
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
-- Settings of the server that can lose acknowledged decisions in a crash.
SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off';

-- name: encoding
SELECT current_setting('server_encoding');

-- name: history_rollups
-- A period's rollups by name and bucket. $4 is the length of a bucket in seconds, and $5 the moment
-- from which buckets are counted. Series are joined only if a part of the key is needed; rollups
-- are summed if there is a grouping.
SELECT {series} AS name, rollups.start - (rollups.start - $5) % $4 AS bucket, {values}
FROM routecast.rollups {join}
WHERE period = $1 AND rollups.start >= $2 AND rollups.start < $3 {filters}
{grouping};

-- name: history_series
JOIN routecast.series ON series.id = rollups.series

-- name: history_filter
AND series.{part} = ANY(${number}::text[])

-- name: history_unsummed
-- As `history_rollups`, for the hours without summaries.
SELECT {series} AS name, rollups.start - (rollups.start - $5) % $4 AS bucket, {values}
FROM routecast.rollups {join}
WHERE period = $1
  AND rollups.start IN (SELECT start FROM routecast.unsummed_hours WHERE start >= $2 AND start < $3)
  {filters}
{grouping};

-- name: history_summaries
-- As `history_rollups`, from the summaries; $1 is the part, $6 its names, or NULL for all.
SELECT {series} AS name, start - (start - $5) % $4 AS bucket, {values}
FROM routecast.{table}
WHERE part = $1 AND start >= $2 AND start < $3
  AND start NOT IN (SELECT start FROM routecast.unsummed_hours)
  AND ($6::text[] IS NULL OR name = ANY($6))
{grouping};

-- name: unsummed_hours
-- The hours without summaries that begin before a moment, the oldest first.
SELECT start FROM routecast.unsummed_hours WHERE start < $1 ORDER BY start LIMIT $2;

-- name: drop_summaries
-- Delete the summaries of some hours, for some parts.
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
-- The summaries of one hour, for some parts.
SELECT part, name, {points}, counts
FROM routecast.summaries LEFT JOIN routecast.latency_summaries USING (part, start, name)
WHERE part IN ({parts})
  AND start = $1;

-- name: window_sums
-- The sums by series of one period's rollups that start at $2 or later, and before $3.
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
-- `history` as in `state`, and the folded names.
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
-- Wait for open commits, and block new ones until the end of this transaction.
SELECT pg_advisory_xact_lock(1381254977, 1);

-- name: wait_for_locks
-- Set how long this transaction waits for a lock.
SELECT set_config('lock_timeout', $1, true);

-- name: limit_idle
-- Set how long this transaction may be idle before the server ends the session.
SELECT set_config('idle_in_transaction_session_timeout', $1, true);

-- name: raise_largest
UPDATE routecast.folded SET largest = greatest(largest, $1);

-- name: series_counts
SELECT series, count FROM routecast.rollups WHERE period = 'total' AND start = 0;

-- name: name_hours
-- The first and the last hour of each name of some parts, from the summaries.
SELECT part, name, min(start), max(start) FROM routecast.summaries
WHERE part = ANY($1::text[]) AND start NOT IN (SELECT start FROM routecast.unsummed_hours)
GROUP BY part, name;

-- name: unsummed_series_hours
-- The first and the last hour of each series, from the hours without summaries.
SELECT series, min(start), max(start) FROM routecast.rollups
WHERE period = 'hour' AND start IN (SELECT start FROM routecast.unsummed_hours) GROUP BY series;

-- name: starts_of_series
-- The starts at which a period has rollups of certain series, and their number.
SELECT start, count(*) FROM routecast.rollups WHERE period = $1 AND series = ANY($2::integer[])
GROUP BY start ORDER BY start;

-- name: take_rollups_of_series
-- Delete a period's rollups of certain series at certain starts, and return them.
DELETE FROM routecast.rollups
WHERE period = $1 AND start = ANY($2::bigint[]) AND series = ANY($3::integer[])
RETURNING start, series, {sums};

-- name: move_decisions
-- Move decisions from old series to new ones.
UPDATE routecast.decisions SET series = moved.new
FROM unnest($1::integer[], $2::integer[]) AS moved (old, new)
WHERE decisions.series = moved.old;

-- name: decisions_as_other
-- The decisions of a project that are kept and count under another name.
SELECT {record_of_both}
FROM routecast.decisions JOIN routecast.series ON series.id = decisions.series
WHERE decisions.project = $1 AND series.project <> $1 AND (commit, place) >= ($2, $3);

-- name: has_decisions_of
SELECT EXISTS (SELECT FROM routecast.decisions WHERE project = $1);

-- name: delete_decisions_of
-- Return the number of those that were kept.
WITH gone AS (DELETE FROM routecast.decisions WHERE project = $1 RETURNING commit, place)
SELECT count(*) FROM gone WHERE (commit, place) >= ($2, $3);

-- name: delete_rollups_of
DELETE FROM routecast.rollups WHERE series = ANY($1::integer[]);

-- name: delete_rollups_at
DELETE FROM routecast.rollups USING unnest($2::bigint[], $3::integer[]) AS gone (start, series)
WHERE period = $1 AND rollups.start = gone.start AND rollups.series = gone.series;

-- name: delete_series
DELETE FROM routecast.series WHERE id = ANY($1::integer[]);

-- name: note_unsummed_hours
INSERT INTO routecast.unsummed_hours (start) SELECT * FROM unnest($1::bigint[])
ON CONFLICT DO NOTHING;

-- name: delete_summaries_of_hours
DELETE FROM routecast.summaries WHERE start = ANY($1::bigint[]);

-- name: delete_latency_summaries_of_hours
DELETE FROM routecast.latency_summaries WHERE start = ANY($1::bigint[]);

-- name: forget_project
DELETE FROM routecast.folded_names WHERE part = 'project' AND name = $1 RETURNING name;

-- name: delete_old_deltas
-- All but the last.
DELETE FROM routecast.deltas WHERE seq < (SELECT max(seq) FROM routecast.deltas);

-- name: replace_delta
UPDATE routecast.deltas SET largest = 0, packed = $2 WHERE seq = $1;

-- name: all_tables
-- Every table with its columns in order; of a partitioned table, not the partitions.
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
-- The size of all tables without their indexes, in bytes.
SELECT coalesce(sum(pg_table_size(oid)), 0)::bigint
FROM pg_class WHERE relnamespace = 'routecast'::regnamespace AND relkind = 'r';

-- name: all_sequences
-- Every sequence with the last number it gave; NULL if it gave none.
SELECT sequencename::text AS name, last_value FROM pg_sequences WHERE schemaname = 'routecast';

-- name: set_sequence
SELECT setval(format('routecast.%I', $1::text)::regclass, $2);

-- name: others_connected
-- The other sessions of this database, by application name.
SELECT coalesce(nullif(application_name, ''), 'a program without a name') AS name, count(*)
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL
  AND coalesce(backend_type, 'client backend') = 'client backend'
GROUP BY 1 ORDER BY 1;

-- name: forget_activity
-- Make this transaction read the list of sessions again.
SELECT pg_stat_clear_snapshot();

-- name: rename_schema
ALTER SCHEMA routecast RENAME TO {name};

-- name: drop_schema
DROP SCHEMA routecast CASCADE;

-- name: empty_table
DELETE FROM routecast.{name};

-- name: access_version
SELECT version FROM routecast.access_version;

-- name: api_keys
SELECT id, name, digest, scopes, projects, created, expires, revoked, last_used
FROM routecast.api_keys;

-- name: revocations
SELECT kind, value, issued_before, created, until FROM routecast.revocations;

-- name: lock_access
-- Wait for another change of keys or revocations, and keep others waiting.
SELECT FROM routecast.access_version FOR UPDATE;

-- name: set_access_version
UPDATE routecast.access_version SET version = $1;

-- name: put_key
-- Of a key that exists, only its end and its projects change.
INSERT INTO routecast.api_keys (
    id, name, digest, scopes, projects, created, expires, revoked, last_used
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (id) DO UPDATE SET
    projects = excluded.projects, expires = excluded.expires, revoked = excluded.revoked;

-- name: drop_key
DELETE FROM routecast.api_keys WHERE id = $1;

-- name: put_revocation
INSERT INTO routecast.revocations (kind, value, issued_before, created, until)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (kind, value) DO UPDATE SET
    issued_before = excluded.issued_before, created = excluded.created, until = excluded.until;

-- name: drop_revocation
DELETE FROM routecast.revocations WHERE kind = $1 AND value = $2;

-- name: note_use
UPDATE routecast.api_keys SET last_used = sent.moment
FROM unnest($1::text[], $2::bigint[]) AS sent (id, moment)
WHERE api_keys.id = sent.id AND coalesce(api_keys.last_used, 0) < sent.moment;

-- name: count_access
-- The number of keys and revocations.
SELECT (SELECT count(*) FROM routecast.api_keys) + (SELECT count(*) FROM routecast.revocations);
