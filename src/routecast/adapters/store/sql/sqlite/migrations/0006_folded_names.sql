-- Names that an operator folded: decisions with them count as `other`.
CREATE TABLE folded_names (
    part TEXT NOT NULL,              -- project, strategy, provider or model
    name TEXT NOT NULL,
    PRIMARY KEY (part, name)
) STRICT, WITHOUT ROWID;
