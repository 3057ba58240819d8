"""JSON Merge Patch (RFC 7396): what changed between two documents; clients apply it.

In a patch null deletes, so documents that are patched hold none: a key without a value is left out
(`without_nulls`).
"""

from collections.abc import Mapping
from typing import Any

Document = dict[str, Any]


def without_nulls(document: Mapping[str, Any]) -> Document:
    """Return a document without the keys that have no value, in objects within it too."""
    return {
        name: without_nulls(value) if isinstance(value, dict) else value
        for name, value in document.items()
        if value is not None
    }


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> Document:
    """Return the smallest patch that makes `after` of `before`; neither may hold nulls."""
    patch: Document = dict.fromkeys(name for name in before if name not in after)
    for name, value in after.items():
        known = before.get(name)
        if known == value:
            continue
        if isinstance(known, dict) and isinstance(value, dict):
            patch[name] = diff(known, value)
        else:
            patch[name] = value
    return patch
