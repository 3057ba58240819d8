"""SQL queries and migrations, read from `.sql` files."""

import re
from collections.abc import Mapping
from importlib import resources
from typing import Final

_QUERY_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_queries(dialect: str, lists: Mapping[str, str]) -> dict[str, str]:
    """Return the named queries of a dialect's `queries.sql`.

    `lists` are lists of columns, which replace their names in braces. Other names in braces stay:
    they are replaced when a query is run.
    """
    text = (resources.files(__package__) / "sql" / dialect / "queries.sql").read_text("utf-8")
    for name, columns in lists.items():
        text = text.replace(f"{{{name}}}", columns)
    parts = _QUERY_NAME.split(text)[1:]
    return {name: sql.strip() for name, sql in zip(parts[::2], parts[1::2], strict=True)}


def load_migrations(dialect: str) -> list[tuple[int, str]]:
    """Return a dialect's migrations as (number, SQL), in the order in which they must run."""
    folder = resources.files(__package__) / "sql" / dialect / "migrations"
    scripts = [file for file in folder.iterdir() if file.name.endswith(".sql")]
    return sorted((int(file.name.split("_")[0]), file.read_text("utf-8")) for file in scripts)
