"""JSON Merge Patch (RFC 7396): the server makes patches, clients apply them.

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


def apply(document: Any, patch: Any) -> Any:
    """Return what a patch makes of a document; neither is changed.

    Both may be any JSON value: a patch that is no object replaces the document, and a document that
    is no object counts as an empty one.
    """
    if not isinstance(patch, dict):
        return patch
    patched = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            patched.pop(name, None)
        else:
            patched[name] = apply(patched.get(name), value)
    return patched
