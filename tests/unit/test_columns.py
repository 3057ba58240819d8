"""Columns of files become fields of decisions: guessed where it is plain, asked for where not."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest

from routecast.cli.columns import Columns, choose
from routecast.errors import BadParameter

BOTH = {"strategy": "s", "provider": "p"}
NONE: dict[str, str] = {}


def chosen(columns: Columns) -> dict[str, str | None]:
    """Return field to column, without the fixed values."""
    return {source.field: source.column for source in columns.sources if source.column}


def how(columns: Columns, field: str) -> str:
    """Return what a person is told about a field."""
    return next(source.how for source in columns.sources if source.field == field)


def read(
    row: Mapping[str, Any], *, fixed: Mapping[str, str] = BOTH, **mapped: str
) -> dict[str, Any]:
    """Return the decision that one row alone becomes."""
    return choose([row], mapped, fixed).row(1, row).decision


def test_azure_columns() -> None:
    """The names of the Azure traces are known; that naive times are read as UTC is said."""
    row = {
        "TIMESTAMP": "2023-11-16 18:17:03.9799600",
        "ContextTokens": "4808",
        "GeneratedTokens": "10",
    }
    columns = choose([row], NONE, BOTH)
    assert chosen(columns) == {
        "timestamp": "TIMESTAMP",
        "input_tokens": "ContextTokens",
        "output_tokens": "GeneratedTokens",
    }
    assert "read as UTC" in how(columns, "timestamp")
    assert columns.row(2, row).decision == {**BOTH, "input_tokens": 4808, "output_tokens": 10}
    assert columns.row(2, row).at == 1_700_158_623_979_960


def test_litellm_spend_log() -> None:
    """A spend log of LiteLLM needs only its strategy named."""
    row = {
        "request_id": "chatcmpl-1",
        "call_type": "acompletion",
        "spend": "0.00012",
        "total_tokens": "30",
        "prompt_tokens": "20",
        "completion_tokens": "10",
        "startTime": "2025-05-01T10:00:00.123Z",
        "endTime": "2025-05-01T10:00:01.123Z",
        "request_duration_ms": "1000",
        "model": "gpt-4o-mini",
        "model_id": "",
        "custom_llm_provider": "openai",
        "messages": "[secret]",
        "status": "failure",
    }
    assert read(row, fixed={"strategy": "least-busy"}) == {
        "id": "chatcmpl-1",
        "strategy": "least-busy",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "cost": Decimal("0.00012"),
        "latency_ms": Decimal(1000),
        "input_tokens": 20,
        "output_tokens": 10,
        "status": "error",
    }
    left_out = dict(choose([row], NONE, {"strategy": "s"}).left_out)
    assert left_out["messages"] == "never sent"
    assert "endTime" in left_out


def test_nested_objects_are_columns_with_dots() -> None:
    """The usage object of an API's answer is read where it stands."""
    row = {"model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    assert read(row) == {**BOTH, "model": "m", "input_tokens": 3, "output_tokens": 4}


@pytest.mark.parametrize("name", ["score", "answer_score", "quality", "probability"])
def test_confidence_is_never_guessed_from_a_score(name: str) -> None:
    """How good an answer was is not how sure the router was."""
    assert "confidence" not in read({name: 0.9, "x": 1})


def test_whose_score_is_a_confidence_is_told_how_to_say_so() -> None:
    """It is left out, with the flag that takes it; not where there is a confidence already."""
    assert "--map confidence=Score" in dict(choose([{"Score": 0.9}], NONE, BOTH).left_out)["Score"]
    both = choose([{"Score": "0.9", "confidence": "0.5"}], NONE, BOTH)
    assert both.left_out == (("Score", ""),)


def test_short_names() -> None:
    """Of a log that somebody wrote by hand."""
    row = {"when": "2026-01-31T12:34:56Z", "ms": "412"}
    columns = choose([row], NONE, BOTH)
    assert chosen(columns) == {"timestamp": "when", "latency_ms": "ms"}
    assert columns.row(1, row).decision["latency_ms"] == 412


@pytest.mark.parametrize(
    ("values", "taken"),
    [(["0.9", "0", "1"], True), (["high", "LOW"], True), (["0.9", "1.5"], False), (["87"], False)],
)
def test_confidence_needs_every_value_to_fit(values: Sequence[str], taken: bool) -> None:
    """A column named confidence in percent is left out, and the reason is given."""
    columns = choose([{"confidence": value} for value in values], NONE, BOTH)
    assert columns.has("confidence") is taken
    assert ("confidence" in dict(columns.left_out)) is not taken
    if not taken:
        assert "not always 0 to 1" in dict(columns.left_out)["confidence"]


@pytest.mark.parametrize(
    ("name", "values", "expected", "said"),
    [
        ("latency_ms", ["12.5"], Decimal("12.5"), "same name"),
        ("duration_seconds", ["0.25"], Decimal(250), "seconds, times 1,000"),
        ("latency", ["0.8", "1.25"], Decimal(800), "taken as seconds"),
        ("latency", ["812", "90"], Decimal(812), "taken as milliseconds"),
        ("response_time", ["512.4", "900.1"], Decimal("512.4"), "taken as milliseconds"),
    ],
)
def test_latency_units(name: str, values: Sequence[str], expected: Decimal, said: str) -> None:
    """Seconds become milliseconds; where the name has no unit, what was taken is said."""
    rows = [{name: value} for value in values]
    columns = choose(rows, NONE, BOTH)
    assert columns.row(1, rows[0]).decision["latency_ms"] == expected
    assert said in how(columns, "latency_ms")


@pytest.mark.parametrize(
    ("values", "relative", "at"),
    [
        ([Decimal("0.451"), 30], True, 451_000),
        ([1_700_000_000, 1_700_000_001], False, 1_700_000_000 * 10**6),
        ([1_700_000_000_123], False, 1_700_000_000_123_000),
        ([1_700_000_000_123_456], False, 1_700_000_000_123_456),
        ([1_700_000_000_123_456_500], False, 1_700_000_000_123_456),
    ],
)
def test_bare_numbers_as_times(values: Sequence[Any], relative: bool, at: int) -> None:
    """Size tells seconds, ms, µs and ns since 1970; small numbers count from the start."""
    rows = [{"timestamp": value} for value in values]
    columns = choose(rows, NONE, BOTH)
    assert columns.relative is relative
    assert columns.row(1, rows[0]).at == at
    assert ("seconds from the start" in how(columns, "timestamp")) is relative


def test_what_is_asked_for_wins() -> None:
    """--map and --set come before every guess, and a field can be left out."""
    row = {"model": "a", "selected_model": "b", "cost": "1", "cents": "250"}
    assert read(row, model="selected_model", cost="cents*0.01") == {
        **BOTH,
        "model": "b",
        "cost": Decimal("2.50"),
    }
    assert "cost" not in read(row, cost="")
    assert read({"provider": "x"}, fixed={"strategy": "s", "provider": "y"})["provider"] == "y"


def test_empty_cells_are_absent() -> None:
    """What a row lacks is not in its decision, and never zero."""
    rows = [
        {"cost": "0.1", "model": "m", "output_tokens": "5"},
        {"cost": "", "model": " ", "output_tokens": "NaN"},
    ]
    columns = choose(rows, NONE, BOTH)
    assert columns.row(3, rows[1]).decision == BOTH


def test_a_better_name_without_values_gives_way() -> None:
    """A column that is empty in every first row is not preferred for its name alone."""
    assert read({"model": "", "model_name": "m"})["model"] == "m"


def test_ids_that_repeat_are_no_ids() -> None:
    """A request id used twice would silently drop decisions; a plain `id` is taken at its word."""
    rows = [{"request_id": "a"}, {"request_id": "a"}]
    columns = choose(rows, NONE, BOTH)
    assert not columns.has("id")
    assert "repeat" in dict(columns.left_out)["request_id"]
    assert choose([{"id": "a"}, {"id": "a"}], NONE, BOTH).has("id")


@pytest.mark.parametrize(
    ("mapped", "fixed", "words"),
    [
        (
            {},
            {},
            ("--map strategy=COLUMN", "--set strategy=VALUE", "--set provider=VALUE", "kind, size"),
        ),
        ({"strategy": "kind"}, {}, ("provider", "--set provider=VALUE", "kind, size")),
        ({"strategy": "nope"}, {"provider": "p"}, ("--map", "'nope'", "kind, size")),
        ({"stratgy": "kind"}, {}, ("--map", "'stratgy'", "strategy, provider")),
        ({"strategy": "kind"}, {"strategy": "x"}, ("--set", "strategy", "--map")),
        ({}, {**BOTH, "cost": "cheap"}, ("--set", "cost", "'cheap' is not a number")),
        ({}, {**BOTH, "id": "1"}, ("--set", "one id")),
        ({"cost": "size*x"}, BOTH, ("--map", "factor", "'x'")),
        ({"model": "size*2"}, BOTH, ("--map", "model", "factor")),
    ],
)
def test_what_cannot_be_done_names_the_flag_and_the_columns(
    mapped: dict[str, str], fixed: dict[str, str], words: Sequence[str]
) -> None:
    """The message says which flag is wrong or missing, and what there is to choose from."""
    with pytest.raises(BadParameter) as caught:
        choose([{"kind": "a", "size": "1"}], mapped, fixed)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["prompt", "messages", "System Prompt"])
def test_prompts_cannot_be_sent_even_when_asked_for(name: str) -> None:
    """Prompts are never stored, so they are never sent."""
    with pytest.raises(BadParameter, match="never sent"):
        choose([{name: "secret"}], {"reason": name}, BOTH)


def test_a_bad_cell_names_field_rule_and_column() -> None:
    """What is wrong with one row can be found in the file."""
    rows = [{"usd": "0.1"}, {"usd": "free"}]
    with pytest.raises(ValueError, match=r"cost: 'free' is not a number \(column usd\)"):
        choose(rows, NONE, BOTH).row(3, rows[1])
