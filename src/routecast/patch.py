"""JSON Merge Patch (RFC 7396): the server makes patches, clients apply them.

In a patch, null deletes a key. So documents that are patched have no nulls: keys without a value
are left out (`without_nulls`).
"""

from collections.abc import Mapping
from typing import Any

Document = dict[str, Any]


def without_nulls(document: Mapping[str, Any]) -> Document:
    """Return a document without its keys that are null, also in nested objects."""
    return {
        name: without_nulls(value) if isinstance(value, dict) else value
        for name, value in document.items()
        if value is not None
    }


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> Document:
    """Return the smallest patch from `before` to `after`; neither may contain nulls."""
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
    """Return a document with a patch applied; the arguments are not changed.

    Both may be any JSON value: a patch that is not an object replaces the document, and a document
    that is not an object counts as an empty one.
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
