-- oldest program: 1
-- Names that an operator folded: decisions with them count as `other`. Programs of an older schema
-- count them under their own names until they are upgraded.
CREATE TABLE folded_names (
    part text COLLATE "C" NOT NULL,  -- project, strategy, provider or model
    name text COLLATE "C" NOT NULL,
    PRIMARY KEY (part, name)
);

-- Return the epoch as of this call. A plain query would see it as of the query's beginning, before
-- `begin_commit` has waited for a transaction that changes names.
CREATE FUNCTION current_epoch() RETURNS text LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT epoch FROM history);
END $$;
