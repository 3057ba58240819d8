"""Damage to the pages of a SQLite file, as a disk or an interrupted copy does it."""

from pathlib import Path

import apsw


def exchange_leaves(path: Path, name: str) -> None:
    """Exchange the first two leaf pages of a table or an index, each of which stays valid.

    The database must be closed, so that all of it is in the file.
    """
    db = apsw.Connection(str(path))
    size = db.pragma("page_size")
    leaves = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path LIMIT 2"
    first, second = ((page - 1) * size for (page,) in db.execute(leaves, (name,)))
    db.close()
    content = bytearray(path.read_bytes())
    content[first : first + size], content[second : second + size] = (
        content[second : second + size],
        content[first : first + size],
    )
    path.write_bytes(content)
