"""Merge patches: they are the smallest change, and apply as RFC 7396 says."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.patch import apply, diff, without_nulls
from tests.support.wire import PATCHES

names = st.sampled_from(["a", "b", "c", ""])
scalars = st.integers(0, 3) | st.sampled_from([0.5, "x", True]) | st.lists(st.integers(0, 1))
documents = st.recursive(
    st.dictionaries(names, scalars),
    lambda inner: st.dictionaries(names, scalars | inner),
    max_leaves=12,
)
anything = st.recursive(
    st.none() | scalars, lambda inner: st.dictionaries(names, inner) | st.lists(inner)
)


def has_null(value: Any) -> bool:
    """Whether an object has a null at any depth."""
    return isinstance(value, dict) and any(v is None or has_null(v) for v in value.values())


@pytest.mark.parametrize("case", PATCHES, ids=lambda case: str(case["patch"]))
def test_examples_of_the_rfc(case: dict[str, Any]) -> None:
    """The server applies the examples of appendix A, as clients do."""
    assert apply(case["before"], case["patch"]) == case["after"]


@given(documents, documents)
def test_a_diff_leads_from_one_document_to_the_other(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    """This holds for any two documents; neither they nor the patch are changed."""
    kept = copy.deepcopy((before, after))
    patch = diff(before, after)
    assert apply(before, patch) == after
    assert (before, after) == kept


@given(documents, documents)
def test_a_diff_has_only_changes(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Without any one of its keys, the result would be another document."""
    patch = diff(before, after)
    assert bool(patch) == (before != after)
    for name in patch:
        rest = {key: value for key, value in patch.items() if key != name}
        assert apply(before, rest) != after


@given(documents, documents, documents)
def test_two_patches_in_a_row_equal_one(
    a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    """Two patches give the same document as the patch between both ends."""
    assert apply(apply(a, diff(a, b)), diff(b, c)) == apply(a, diff(a, c)) == c


@given(st.dictionaries(names, anything))
def test_nulls_are_left_out(document: dict[str, Any]) -> None:
    """No object has a null, and all other values stay."""
    clean = without_nulls(document)
    assert not has_null(clean)
    assert clean == apply({}, document)
