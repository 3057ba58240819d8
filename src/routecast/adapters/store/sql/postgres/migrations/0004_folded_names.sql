-- oldest program: 1
-- Names that an operator folded: decisions with them are counted as `other`. A program that knows
-- nothing of this table goes on counting them under their own names, until it is upgraded.
CREATE TABLE folded_names (
    part text COLLATE "C" NOT NULL,  -- project, strategy, provider or model
    name text COLLATE "C" NOT NULL,
    PRIMARY KEY (part, name)
);

-- The epoch as of this call: a plain query would see it as of its own beginning, which is before
-- `begin_commit` has waited for those that change names.
CREATE FUNCTION current_epoch() RETURNS text LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT epoch FROM history);
END $$;
