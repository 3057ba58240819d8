-- The named queries of the SQLite store, in sections that begin with "name:".
--
-- A name in braces such as {key} is a list of columns from `columns.py`. The caller of the query
-- replaces all other names in braces.

-- name: begin_history
INSERT INTO history (only_row, epoch, seq, minutes_from) VALUES (1, ?, 0, 0)
ON CONFLICT DO NOTHING;

-- name: history
SELECT epoch, seq, minutes_from, folded, folded_parts FROM history;

-- name: mark
-- The last mark, the schema version that the file had when a server last opened it, and whether it
-- is open.
SELECT mark, schema_version, open FROM marks;

-- name: begin_marks
INSERT INTO marks (mark, schema_version, open) VALUES (x'', ?, 0);

-- name: set_mark
UPDATE marks SET mark = ?;

-- name: set_claimed
UPDATE marks SET schema_version = ?, open = ?;

-- name: advance
UPDATE history SET seq = ?;

-- name: add_delta
-- The parts of one delta.
INSERT INTO deltas (seq, part, cells, largest, packed) VALUES {rows};

-- name: deltas
-- The parts of the deltas after ?1, without the first ?2 parts of the first of them.
SELECT seq, packed FROM deltas
WHERE seq > ?1 AND (seq > ?1 + 1 OR part >= ?2) ORDER BY seq, part;

-- name: unfolded
-- The sizes of the parts that `deltas` returns. They are one row of JSON, because each row passes
-- the interpreter's lock once.
SELECT json_group_array(json_array(seq, part, cells, largest)) FROM (
    SELECT seq, part, cells, largest FROM deltas
    WHERE seq > ?1 AND (seq > ?1 + 1 OR part >= ?2) ORDER BY seq, part
);

-- name: delta_part
SELECT packed FROM deltas WHERE seq = ? AND part = ?;

-- name: drop_deltas
DELETE FROM deltas WHERE seq <= ?;

-- name: drop_large_deltas
-- Delete the oldest deltas up to ?1, so that the remaining ones have at most ?2 cells together.
DELETE FROM deltas WHERE seq <= ?1 AND seq <= (
    SELECT max(seq) FROM (
        SELECT seq, sum(cells) OVER (ORDER BY seq DESC, part DESC) AS cells FROM deltas
    ) WHERE cells > ?2
);

-- name: set_folded
UPDATE history SET folded = ?, folded_parts = ?;

-- name: near_series
-- Series with a total of 2^62 or more, from a partial index.
SELECT {key}
FROM rollups INDEXED BY near_series JOIN series ON series.id = rollups.series
WHERE period = 'total'
  AND max(confidence_sum, cost_sum, latency_sum, input_tokens, output_tokens)
      >= 4611686018427387904;

-- name: take_back
-- Delete the sent [id, project] pairs.
DELETE FROM decisions WHERE n IN (
    SELECT decisions.n FROM json_each(?) AS sent
    JOIN decisions ON decisions.id = sent.value ->> 0 AND decisions.project = sent.value ->> 1
);

-- name: touch
UPDATE checks SET number = number + 1;

-- name: stored_contents
-- The stored contents of the sent [id, project] pairs, as JSON, to compare repeated decisions with.
SELECT json_group_array(json_array(
    decisions.id, decisions.project, series.status, series.model, decisions.cost
))
FROM json_each(?) AS sent
CROSS JOIN decisions
ON decisions.id = sent.value ->> 0 AND decisions.project = sent.value ->> 1
JOIN series ON series.id = decisions.series;

-- name: attached_contents
-- As `stored_contents`, from the attached database `stored`.
SELECT json_group_array(json_array(kept.id, kept.project, series.status, series.model, kept.cost))
FROM json_each(?) AS sent
CROSS JOIN stored.decisions AS kept
ON kept.id = sent.value ->> 0 AND kept.project = sent.value ->> 1
JOIN stored.series AS series ON series.id = kept.series;

-- name: insert_decisions
-- `rows` has placeholders for all rows, so that one step of the engine inserts many of them.
INSERT INTO decisions (
    id, project, series, seq, received, {values_stored}
) VALUES {rows} ON CONFLICT DO NOTHING;

-- name: attach_stored
ATTACH ? AS stored;

-- name: detach_stored
DETACH stored;

-- name: create_staged
-- The table in which a large batch is prepared, in a database in memory.
CREATE TABLE decisions (
    place INTEGER, {stored_with_types},
    PRIMARY KEY (id, project)
) STRICT, WITHOUT ROWID;

-- name: stage_decisions
INSERT INTO main.decisions (
    place, {stored}
) VALUES {rows} ON CONFLICT DO NOTHING;

-- name: drop_known
DELETE FROM main.decisions WHERE EXISTS (
    SELECT 1 FROM stored.decisions AS kept
    WHERE kept.id = main.decisions.id AND kept.project = main.decisions.project
);

-- name: staged_places
SELECT json_group_array(place) FROM (SELECT place FROM main.decisions ORDER BY place);

-- name: take_back_staged
-- Delete the sent [id, project] pairs.
DELETE FROM main.decisions WHERE (id, project) IN (
    SELECT value ->> 0, value ->> 1 FROM json_each(?)
);

-- name: attach_staged
ATTACH ':memory:' AS staged;

-- name: detach_staged
DETACH staged;

-- name: insert_staged
-- Insert all decisions of the database `staged`, in the order of the index of ids.
INSERT INTO main.decisions (
    id, project, series, seq, received, {values_stored}
)
SELECT id, project, series, ?, ?, {values_stored}
FROM staged.decisions WHERE true ON CONFLICT DO NOTHING;

-- name: add_series
-- Insert the new ones of an array of keys.
INSERT INTO series ({key})
SELECT {key_of_json} FROM json_each(?) WHERE true ON CONFLICT DO NOTHING;

-- name: series
SELECT id, {key} FROM series;

-- name: names_of_series
-- The keys of the series with the sent numbers.
SELECT id, {key} FROM series WHERE id IN (SELECT value FROM json_each(?));

-- name: series_numbers
-- The numbers of an array of keys, by their places in it, as JSON.
SELECT json_group_array(json_array(sent.key, series.id))
FROM json_each(?) AS sent CROSS JOIN series
ON {is_key_of_json};

-- name: last_series
SELECT max(id) FROM series;

-- name: rollups
-- The sums of one period that start at the first moment or later, and before the second.
SELECT start, series, {sums} FROM rollups
WHERE period = ? AND start >= ? AND start < ? ORDER BY start, series;

-- name: rollups_at
-- The sums of an array of [start, series] in one period, as JSON.
SELECT json_group_array(json_array(
    start, series, {scalars}, hex(latency_bins)
))
FROM json_each(?2) AS wanted CROSS JOIN rollups
ON period = ?1 AND start = wanted.value ->> 0 AND series = wanted.value ->> 1;

-- name: put_rollups
-- Replace whole rows. The writer has merged the sums.
INSERT OR REPLACE INTO rollups (
    period, start, series, {sums}
) VALUES {rows};

-- name: span
-- The times of receipt of the first and the last decision, and the first minute, in microseconds;
-- NULL if there is none.
SELECT (SELECT received FROM decisions ORDER BY n LIMIT 1),
       (SELECT received FROM decisions ORDER BY n DESC LIMIT 1),
       (SELECT min(start) * 1000000 FROM rollups WHERE period = 'minute');

-- name: oldest_decisions
-- The oldest decisions for retention, in the order of receipt, as JSON.
SELECT json_group_array(json_array(
    n, received, {record}
)) FROM (
    SELECT n, received, {record_of_both}
    FROM decisions JOIN series ON series.id = decisions.series
    ORDER BY n LIMIT ?
);

-- name: delete_decisions
DELETE FROM decisions WHERE n <= ?;

-- name: oldest_minute
SELECT min(start) FROM rollups WHERE period = 'minute';

-- name: delete_minutes
-- Delete minutes that start at the first moment or later and before the second, up to a number of
-- rows.
DELETE FROM rollups WHERE (period, start, series) IN (
    SELECT period, start, series FROM rollups
    WHERE period = 'minute' AND start >= ? AND start < ? LIMIT ?
);

-- name: set_minutes_from
UPDATE history SET minutes_from = max(minutes_from, ?);

-- name: count_decisions
SELECT count(*) FROM decisions NOT INDEXED;

-- name: count_ids
SELECT count(*) FROM decisions INDEXED BY decisions_id WHERE id >= '';

-- name: latest_delta
SELECT coalesce(max(seq), 0) FROM deltas;

-- name: delta_parts
-- As `deltas`, with the number of each part.
SELECT seq, part, packed FROM deltas
WHERE seq > ?1 AND (seq > ?1 + 1 OR part >= ?2) ORDER BY seq, part;

-- name: strays
-- Errors that no sum shows, with their number. ?1 is the name `other`; a decision that counts as
-- `other` may have any project.
SELECT 'decisions of a project other than that of their series', count(*)
FROM decisions JOIN series ON series.id = decisions.series
WHERE decisions.project != series.project AND series.project != ?1
UNION ALL
SELECT 'decisions of a series that is not there', count(*)
FROM decisions WHERE series NOT IN (SELECT id FROM series)
UNION ALL
SELECT 'decisions received in another order than they were committed', count(*)
FROM (SELECT seq < lag(seq) OVER (ORDER BY n) AS early FROM decisions) WHERE early
UNION ALL
SELECT 'summary histograms of no summary', count(*)
FROM latency_summaries AS held LEFT JOIN summaries USING (part, start, name)
WHERE summaries.start IS NULL AND held.start NOT IN (SELECT start FROM unsummed_hours)
UNION ALL
SELECT 'summary rows of an unknown part', count(*) FROM summaries
WHERE part NOT IN ({parts});

-- name: latest_seq
SELECT coalesce(max(seq), 0) FROM decisions;

-- name: recount
-- The rollups by minute, recounted from the decisions.
SELECT decided / 60000000 * 60 AS start, series,
       count(*), sum(fallback),
       count(confidence), coalesce(sum(confidence), 0),
       count(cost), coalesce(sum(cost), 0),
       count(latency), coalesce(sum(latency), 0),
       coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
       coalesce(sum(cost) FILTER (WHERE input_tokens NOTNULL AND output_tokens NOTNULL), 0),
       coalesce(sum(input_tokens) FILTER (WHERE cost NOTNULL AND output_tokens NOTNULL), 0),
       coalesce(sum(output_tokens) FILTER (WHERE cost NOTNULL AND input_tokens NOTNULL), 0),
       latency_bins(latency)
FROM decisions GROUP BY 1, 2 ORDER BY 1, 2;

-- name: hours
-- Every hour that has rollups or summaries.
SELECT DISTINCT start FROM rollups WHERE period IN ('hour', 'pruned')
UNION SELECT DISTINCT start / 3600 * 3600 FROM rollups WHERE period = 'minute'
UNION SELECT start FROM summaries
ORDER BY 1;

-- name: history_rollups
-- A period's rollups by name and bucket. ?4 is the length of a bucket in seconds, and ?5 the moment
-- from which buckets are counted. Rollups are summed if there is a grouping.
SELECT {series} AS name, rollups.start - (rollups.start - ?5) % ?4 AS bucket, {values}
FROM rollups LEFT JOIN series ON series.id = rollups.series
WHERE period = ?1 AND rollups.start >= ?2 AND rollups.start < ?3 {filters}
{grouping};

-- name: history_filter
-- The condition that a filter adds to `history_rollups` and `history_unsummed`.
AND series.{part} IN (SELECT value FROM json_each(?{number}))

-- name: history_unsummed
-- As `history_rollups`, for the hours without summaries.
SELECT {series} AS name, rollups.start - (rollups.start - ?5) % ?4 AS bucket, {values}
FROM rollups LEFT JOIN series ON series.id = rollups.series
WHERE period = ?1
  AND rollups.start IN (SELECT start FROM unsummed_hours WHERE start >= ?2 AND start < ?3)
  {filters}
{grouping};

-- name: history_summaries
-- As `history_rollups`, from the summaries; ?1 is the part, ?6 its names, or NULL for all.
SELECT {series} AS name, start - (start - ?5) % ?4 AS bucket, {values}
FROM {table}
WHERE part = ?1 AND start >= ?2 AND start < ?3
  AND start NOT IN (SELECT start FROM unsummed_hours)
  AND (?6 IS NULL OR name IN (SELECT value FROM json_each(?6)))
{grouping};

-- name: note_unsummed_hours
-- Record that the hours of an array changed.
INSERT INTO unsummed_hours (start, changes) SELECT value, 1 FROM json_each(?) WHERE true
ON CONFLICT DO UPDATE SET changes = changes + 1;

-- name: unsummed_hours
-- The hours without summaries that begin before a moment, the oldest first.
SELECT start FROM unsummed_hours WHERE start < ? ORDER BY start LIMIT ?;

-- name: drop_summaries
-- Delete the summaries of one hour, for some parts.
DELETE FROM summaries WHERE part IN (SELECT value FROM json_each(?)) AND start = ?;

-- name: drop_latency_summaries
DELETE FROM latency_summaries WHERE part IN (SELECT value FROM json_each(?)) AND start = ?;

-- name: put_summaries
INSERT INTO summaries (
    part, start, name, {points}, {points_high}
) VALUES {rows};

-- name: put_latency_summaries
INSERT INTO latency_summaries (part, start, name, counts) VALUES {rows};

-- name: changes_of_hour
-- The number of changes of an hour since it was summed.
SELECT changes FROM unsummed_hours WHERE start = ?;

-- name: hour_is_summed
-- Record that an hour has summaries, if it has not changed since it was read.
DELETE FROM unsummed_hours WHERE start = ? AND changes = ?;

-- name: summaries
-- The summaries of one hour, for some parts.
SELECT part, name, {points}, {points_high}, counts
FROM summaries LEFT JOIN latency_summaries USING (part, start, name)
WHERE part IN ({parts})
  AND start = ?;

-- name: window_sums
-- The sums by series of one period's rollups that start at the first moment or later, and before
-- the second.
SELECT series, {scalars_added} FROM rollups
WHERE period = ? AND start >= ? AND start < ? GROUP BY series;

-- name: window_bins
SELECT series, latency_bins FROM rollups WHERE period = ? AND start >= ? AND start < ?;

-- name: window_counts
SELECT start, series, count FROM rollups WHERE period = 'minute' AND start >= ? AND start < ?;

-- name: folded_names
SELECT part, name FROM folded_names;

-- name: remember_name
INSERT INTO folded_names (part, name) VALUES (?, ?) ON CONFLICT DO NOTHING;

-- name: forget_name
DELETE FROM folded_names WHERE part = ? AND name = ?;

-- name: begin_epoch
UPDATE history SET epoch = ?;

-- name: series_counts
SELECT series, count FROM rollups WHERE period = 'total' AND start = 0;

-- name: name_hours
-- The first and the last hour of each name of a part, from the summaries.
SELECT name, min(start), max(start) FROM summaries
WHERE part = ? AND start NOT IN (SELECT start FROM unsummed_hours) GROUP BY name;

-- name: unsummed_series_hours
-- The first and the last hour of each series, from the hours without summaries.
SELECT series, min(start), max(start) FROM rollups
WHERE period = 'hour' AND start IN (SELECT start FROM unsummed_hours) GROUP BY series;

-- name: starts_of_series
-- The starts at which a period has rollups of certain series, and their number.
SELECT start, count(*) FROM rollups
WHERE period = ? AND series IN (SELECT value FROM json_each(?)) GROUP BY start ORDER BY start;

-- name: rollups_of_series
-- A period's rollups of certain series at certain starts.
SELECT start, series, {sums}
FROM rollups
WHERE period = ? AND start IN (SELECT value FROM json_each(?))
  AND series IN (SELECT value FROM json_each(?))
ORDER BY start, series;

-- name: delete_rollups_of_series
DELETE FROM rollups
WHERE period = ? AND start IN (SELECT value FROM json_each(?))
  AND series IN (SELECT value FROM json_each(?));

-- name: make_moved
-- A table with a key, so that `move_decisions` does not read all pairs for each decision.
CREATE TEMP TABLE moved (old INTEGER PRIMARY KEY, new INTEGER NOT NULL);

-- name: put_moved
-- [old, new] pairs of series.
INSERT INTO moved SELECT value ->> 0, value ->> 1 FROM json_each(?);

-- name: move_decisions
UPDATE decisions SET series = moved.new FROM moved WHERE decisions.series = moved.old;

-- name: drop_moved
DROP TABLE moved;

-- name: decisions_as_other
-- The decisions of a project that count under another name, from a row on.
SELECT n, {record_of_both}
FROM decisions JOIN series ON series.id = decisions.series
WHERE decisions.project = ?1 AND series.project != ?1 AND n > ?2 ORDER BY n LIMIT ?3;

-- name: has_decisions_of
SELECT EXISTS (SELECT 1 FROM decisions WHERE project = ?);

-- name: delete_decisions_of
DELETE FROM decisions WHERE project = ?;

-- name: delete_rollups_of
DELETE FROM rollups WHERE series IN (SELECT value FROM json_each(?));

-- name: delete_rollups_at
-- An array of [start, series] in one period.
DELETE FROM rollups WHERE period = ?1 AND (start, series) IN (
    SELECT value ->> 0, value ->> 1 FROM json_each(?2)
);

-- name: delete_series
DELETE FROM series WHERE id IN (SELECT value FROM json_each(?));

-- name: delete_summaries_of_hours
DELETE FROM summaries WHERE start IN (SELECT value FROM json_each(?));

-- name: delete_latency_summaries_of_hours
DELETE FROM latency_summaries WHERE start IN (SELECT value FROM json_each(?));

-- name: access_version
SELECT version FROM access_version;

-- name: api_keys
SELECT id, name, digest, scopes, projects, created, expires, revoked, last_used FROM api_keys;

-- name: revocations
SELECT kind, value, issued_before, created, until FROM revocations;

-- name: set_access_version
UPDATE access_version SET version = ?;

-- name: put_key
-- Of a key that exists, only its end and its projects change.
INSERT INTO api_keys (id, name, digest, scopes, projects, created, expires, revoked, last_used)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    projects = excluded.projects, expires = excluded.expires, revoked = excluded.revoked;

-- name: drop_key
DELETE FROM api_keys WHERE id = ?;

-- name: put_revocation
INSERT INTO revocations (kind, value, issued_before, created, until) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (kind, value) DO UPDATE SET
    issued_before = excluded.issued_before, created = excluded.created, until = excluded.until;

-- name: drop_revocation
DELETE FROM revocations WHERE kind = ? AND value = ?;

-- name: note_use
-- [id, moment] pairs, as JSON.
UPDATE api_keys SET last_used = sent.value ->> 1
FROM json_each(?) AS sent
WHERE api_keys.id = sent.value ->> 0 AND coalesce(last_used, 0) < sent.value ->> 1;

-- name: count_access
-- The number of keys and revocations.
SELECT (SELECT count(*) FROM api_keys) + (SELECT count(*) FROM revocations);
