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


def held_by(value: Any) -> bool:
    """Whether there is a null in an object, however deep."""
    return isinstance(value, dict) and any(v is None or held_by(v) for v in value.values())


@pytest.mark.parametrize("case", PATCHES, ids=lambda case: str(case["patch"]))
def test_examples_of_the_rfc(case: dict[str, Any]) -> None:
    """Its appendix A, as clients have it too."""
    assert apply(case["before"], case["patch"]) == case["after"]


@given(documents, documents)
def test_a_diff_leads_from_one_document_to_the_other(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Whatever the two are; and neither they nor the patch are changed by it."""
    kept = copy.deepcopy((before, after))
    patch = diff(before, after)
    assert apply(before, patch) == after
    assert (before, after) == kept


@given(documents, documents)
def test_a_diff_says_nothing_that_did_not_change(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Every part of it is needed: without any one key, the outcome is another."""
    patch = diff(before, after)
    assert bool(patch) == (before != after)
    for name in patch:
        rest = {key: value for key, value in patch.items() if key != name}
        assert apply(before, rest) != after


@given(documents, documents, documents)
def test_patches_follow_one_another(
    a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    """Two in a row lead where one does that was made of both ends."""
    assert apply(apply(a, diff(a, b)), diff(b, c)) == apply(a, diff(a, c)) == c


@given(st.dictionaries(names, anything))
def test_nulls_are_left_out(document: dict[str, Any]) -> None:
    """From every object; what has a value stays."""
    clean = without_nulls(document)
    assert not held_by(clean)
    assert clean == apply({}, document)
