-- Summaries beyond 64 bits, because a sum over many series may need more. The value is the column
-- plus 2^63 times its `_high` column.
ALTER TABLE summaries ADD COLUMN confidence_sum_high INTEGER NOT NULL DEFAULT 0;
ALTER TABLE summaries ADD COLUMN cost_sum_high       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE summaries ADD COLUMN latency_sum_high    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE summaries ADD COLUMN input_tokens_high   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE summaries ADD COLUMN output_tokens_high  INTEGER NOT NULL DEFAULT 0;
