-- A sum over many series may take more than 64 bits. What is above the lowest 63 bits of a value is
-- kept beside it: the value is the column, plus its `_high` times 2^63.
ALTER TABLE summaries ADD COLUMN confidence_sum_high INTEGER NOT NULL DEFAULT 0;
ALTER TABLE summaries ADD COLUMN cost_sum_high       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE summaries ADD COLUMN latency_sum_high    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE summaries ADD COLUMN input_tokens_high   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE summaries ADD COLUMN output_tokens_high  INTEGER NOT NULL DEFAULT 0;
