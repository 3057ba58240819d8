"""Surveys of files: which column is which field, or a doubt where that is uncertain."""

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest

from routecast.cli.replay.column_mapping import Columns
from routecast.cli.replay.survey import Survey, Uncertain
from routecast.errors import BadParameter

BOTH = {"strategy": "s", "provider": "p"}
NONE: dict[str, str] = {}


def choose(
    rows: Iterable[Mapping[str, Any]], mapped: Mapping[str, str], fixed: Mapping[str, str]
) -> Columns:
    """Survey rows, and choose fields."""
    survey = Survey(mapped, fixed)
    for row in rows:
        survey.add(row)
    return survey.choose()


def column(name: str, *values: object, **mapped: str) -> tuple[list[Any], str]:
    """Return the values that one column becomes, and the notes about it."""
    rows = [{name: value} for value in values]
    columns = choose(rows, mapped, BOTH)
    (source,) = [source for source in columns.sources if source.column == name]
    found = [columns.row(n, row) for n, row in enumerate(rows)]
    if source.field == "timestamp":
        return [row.at for row in found], source.how
    return [row.decision.get(source.field) for row in found], source.how


def doubt(name: str, *values: object, **mapped: str) -> str:
    """Return the note about a column that can be read in more than one way."""
    with pytest.raises(Uncertain) as caught:
        choose([{name: value} for value in values], mapped, BOTH)
    return str(caught.value)


def chosen(columns: Columns) -> dict[str, str | None]:
    """Return the column of each field, without the fixed values."""
    return {source.field: source.column for source in columns.sources if source.column}


def how(columns: Columns, field: str) -> str:
    """Return the note for people about a field."""
    return next(source.how for source in columns.sources if source.field == field)


def read(
    row: Mapping[str, Any], *, fixed: Mapping[str, str] = BOTH, **mapped: str
) -> dict[str, Any]:
    """Return the decision of a single row."""
    return choose([row], mapped, fixed).row(1, row).decision


def test_azure_columns() -> None:
    """The columns of the Azure traces are known; a note says that naive times are UTC."""
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
    """Only the strategy must be given for a spend log of LiteLLM."""
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
    """The `usage` object of an API's answer is read."""
    row = {"model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    assert read(row) == {**BOTH, "model": "m", "input_tokens": 3, "output_tokens": 4}


@pytest.mark.parametrize("name", ["score", "answer_score", "quality", "probability"])
def test_confidence_is_never_guessed_from_a_score(name: str) -> None:
    """A score may rate the answer, and not the router's confidence."""
    assert "confidence" not in read({name: 0.9, "x": 1})


def test_a_score_is_left_out_with_the_option_to_take_it() -> None:
    """The note names the option, unless there is a confidence already."""
    assert "--map confidence=Score" in dict(choose([{"Score": 0.9}], NONE, BOTH).left_out)["Score"]
    both = choose([{"Score": "0.9", "confidence": "0.5"}], NONE, BOTH)
    assert both.left_out == (("Score", ""),)


def test_short_names() -> None:
    """Short column names of hand-written logs are known."""
    row = {"when": "2026-01-31T12:34:56Z", "ms": "412"}
    columns = choose([row], NONE, BOTH)
    assert chosen(columns) == {"timestamp": "when", "latency_ms": "ms"}
    assert columns.row(1, row).decision["latency_ms"] == 412


def test_options_win_over_guesses() -> None:
    """--map and --set replace every guess, and can leave a field out."""
    row = {"model": "a", "selected_model": "b", "cost": "1", "cents": "250"}
    assert read(row, model="selected_model", cost="cents*0.01") == {
        **BOTH,
        "model": "b",
        "cost": Decimal("2.50"),
    }
    assert "cost" not in read(row, cost="")
    assert read({"provider": "x"}, fixed={"strategy": "s", "provider": "y"})["provider"] == "y"


def test_a_better_name_without_values_gives_way() -> None:
    """A column that is empty in all first rows is not chosen for its name."""
    assert read({"model": "", "model_name": "m"})["model"] == "m"


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
def test_errors_have_the_option_and_the_columns(
    mapped: dict[str, str], fixed: dict[str, str], words: Sequence[str]
) -> None:
    """The error names the wrong or missing option, and the existing columns."""
    with pytest.raises(BadParameter) as caught:
        choose([{"kind": "a", "size": "1"}], mapped, fixed)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["prompt", "messages", "System Prompt"])
def test_prompts_cannot_be_sent_even_when_asked_for(name: str) -> None:
    """Prompts are never stored, so they are never sent."""
    with pytest.raises(BadParameter, match="never sent"):
        choose([{name: "secret"}], {"reason": name}, BOTH)


# -- how a column is read -----------------------------------------------------------------------

DAY = 86_400_000_000


def days(*moments: int) -> list[int]:
    """Return days since 1970."""
    return [moment // DAY for moment in moments]


def test_one_cell_decides_the_order_of_days_and_months() -> None:
    """The cell may be anywhere in the file, and a note says what was decided."""
    at, said = column("time", "01/02/2026", *["02/02/2026"] * 2000, "31/01/2026")
    assert days(at[0], at[-1]) == [20_485, 20_484]
    assert "day first" in said
    at, said = column("time", "01/02/2026", "01/31/2026")
    assert days(*at) == [20_455, 20_484]
    assert "month first" in said
    assert column("time", "01.02.2026")[0] == [20_485 * DAY]


@pytest.mark.parametrize("values", [["01/02/2026"], ["01/02/2026", "31/01/2026", "01/31/2026"]])
def test_an_open_order_is_a_doubt(values: Sequence[str]) -> None:
    """Both readings are shown with their options, and an option decides."""
    said = doubt("when", *values)
    assert "--map timestamp=when:dmy (1 February 2026)" in said
    assert "--map timestamp=when:mdy (2 January 2026)" in said
    assert column("when", "01/02/2026", timestamp="when:mdy")[0] == [20_455 * DAY]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("startTime", ["yesterday"], "'yesterday' is not a time (1 of 1 values)"),
        ("startTime", ["2026-01-31 12:00:00 CET"], "%d.%m.%Y"),
        ("time", ["0.35", "0.21", "0.4"], "--map timestamp=time:start"),
        ("date", [2026, 2026], "--map timestamp="),
        ("time", [5_000_000], "--map timestamp=time:start"),
        ("cost", ["free", "free", "0.1"], "'free' is not a number (2 of 3 values)"),
        ("cost", ["0.5 EUR"], "'0.5 EUR' is in 'EUR'"),
        ("cost", ["1,234"], "--map cost=cost:point (1234), or --map cost=cost:comma (1.234)"),
        ("cost", ["12,5", "1,234.5"], "1 of 2 values are written in another way"),
        ("prompt_tokens", ["1.000"], "--map input_tokens=prompt_tokens:comma"),
        ("prompt_tokens", ["1.2k"], "'1.2k' is in 'k'"),
        ("latency", ["15.5"], "--map 'latency_ms=latency*1000'"),
        ("latency", ["350 ms", "0.35"], "1 of 2 values are written in another way"),
        ("confidence", ["87", "90"], "--map 'confidence=confidence*0.01'"),
        ("confidence", ["0.9", "1.5"], "is not 0 to 1"),
        ("status", ["active", "idle"], "neither"),
        ("status", ["0", "1"], "--map status=status:failed"),
        ("status", [0, 0], "--map status=status:failed"),
        ("fallback", ["gpt-4"], "--map fallback="),
        ("seen at", ["2026-01-31 12:00"], "--map 'timestamp=seen at'"),
        ("epoch_ms", ["1769862890789"], "--map timestamp=epoch_ms"),
    ],
)
def test_a_reading_that_is_not_certain_is_a_doubt(
    name: str, values: Sequence[object], words: str
) -> None:
    """A doubt shows a value of the file, and the option that decides."""
    said = doubt(name, *values)
    assert name in said
    assert words in said
    assert "--map" in said


@pytest.mark.parametrize(
    ("name", "value"), [("batch", "1769862890789"), ("timeout", "30"), ("note", "2026")]
)
def test_numbers_that_only_look_like_times_are_left_out(name: str, value: str) -> None:
    """Numbers that could be Unix times need a name that means a time."""
    assert choose([{name: value}], NONE, BOTH).left_out == ((name, ""),)


def test_all_doubts_are_reported_at_once() -> None:
    """One more run is then enough."""
    with pytest.raises(Uncertain) as caught:
        choose([{"cost": "x", "time": "y", "status": "z"}], NONE, BOTH)
    assert re.findall(r"^\w+", str(caught.value), re.MULTILINE) == ["time", "cost", "status"]


def test_columns_that_the_user_named_are_read_as_far_as_possible() -> None:
    """A row keeps its time or is refused; other cells that cannot be read are left out."""
    values = ["free", "free", "free", "0.1"]
    assert column("cost", *values, cost="cost")[0] == [None, None, None, Decimal("0.1")]
    assert "is not a number" in doubt("cost", "free", cost="cost")
    columns = choose([{"time": "soon"}, {"time": "2026-01-31"}], {"timestamp": "time"}, BOTH)
    with pytest.raises(ValueError, match=r"timestamp: 'soon' is not a time \(column time\)"):
        columns.row(1, {"time": "soon"})


def test_numbers_of_one_file_are_written_in_one_way() -> None:
    """An ambiguous column is read as the other columns are."""
    rows = [{"cost": "0,0023", "latency_ms": "1.234"}]
    assert choose(rows, NONE, BOTH).row(1, rows[0]).decision["latency_ms"] == 1234
    rows = [{"cost": "0,0023", "latency_ms": "1,234 ms"}]
    assert choose(rows, NONE, BOTH).row(1, rows[0]).decision["latency_ms"] == Decimal("1.234")
    rows = [{"cost": "0.0023", "latency_ms": "1,234"}]
    assert choose(rows, NONE, BOTH).row(1, rows[0]).decision["latency_ms"] == 1234
    rows = [{"cost": "0.0023", "latency_ms": "1.234"}]
    assert choose(rows, NONE, BOTH).row(1, rows[0]).decision["latency_ms"] == Decimal("1.234")


def test_decimal_commas_and_grouped_digits() -> None:
    """The whole column decides, and an unusual reading has a note."""
    assert column("cost", "1,234", "0,5") == (
        [Decimal("1.234"), Decimal("0.5")],
        "same name; decimal comma",
    )
    assert column("cost", "1,234", "0.5")[0] == [1234, Decimal("0.5")]
    assert column("cost", "1.234", "1.234,5")[0] == [1234, Decimal("1234.5")]
    assert column("spend", "$1,234.50")[0] == [Decimal("1234.50")]
    assert column("prompt_tokens", "1,234", "12")[0] == [1234, 12]
    assert column("cost", "1,234", cost="cost:comma")[0] == [Decimal("1.234")]


@pytest.mark.parametrize(
    ("name", "values", "expected", "said"),
    [
        ("latency_ms", ["12.5"], Decimal("12.5"), "same name"),
        ("duration_seconds", ["0.25"], Decimal(250), "seconds, times 1,000"),
        ("latency", ["0.8", "1.25"], Decimal(800), "taken as seconds"),
        ("latency", ["0,8", "1,25"], Decimal(800), "decimal comma, taken as seconds"),
        ("latency", ["812", "90"], Decimal(812), "taken as milliseconds"),
        ("response_time", ["512.4", "900.1"], Decimal("512.4"), "taken as milliseconds"),
        ("latency", ["350 ms", "0.2 s"], Decimal(350), "with unit"),
    ],
)
def test_latency_units(name: str, values: Sequence[str], expected: Decimal, said: str) -> None:
    """Seconds become milliseconds; without a unit in the name, a note says what was assumed."""
    found, words = column(name, *values)
    assert found[0] == expected
    assert said in words


def test_a_factor_settles_the_unit() -> None:
    """The factor counts for any values, and beside any other column."""
    assert column("took", "15.5", latency_ms="took*1")[0] == [Decimal("15.5")]
    assert column("took", "15,5", latency_ms="took:comma*1000")[0] == [15_500]
    assert column("eur", "€2", cost="eur*1.1")[0] == [Decimal("2.2")]
    assert column("sure", "87%", confidence="sure*0.01")[0] == [Decimal("0.87")]


@pytest.mark.parametrize(
    ("values", "last", "at", "said"),
    [
        ([Decimal("0.451"), 30], 30_000_000, 451_000, "seconds from the start"),
        ([1_700_000_000] * 9 + [0], None, 1_700_000_000 * 10**6, "Unix time"),
        (["1700000000123"], None, 1_700_000_000_123_000, "Unix time"),
        (["46053.5"], None, 1_769_860_800_000_000, "Excel's days"),
        (["2026-01-31 12:00:00"], None, 1_769_860_800_000_000, "no offset given, read as UTC"),
    ],
)
def test_numbers_as_times(values: Sequence[Any], last: int | None, at: int, said: str) -> None:
    """Their size decides between s, ms, µs and ns; small numbers count from the start."""
    rows = [{"timestamp": value} for value in values]
    columns = choose(rows, NONE, BOTH)
    assert columns.last == last
    assert columns.row(1, rows[0]).at == at
    assert said in how(columns, "timestamp")


def test_error_columns_hold_messages() -> None:
    """A message is an error and an empty cell is none; codes and words are statuses."""
    assert column("error", "RateLimitError", "", "null")[0] == ["error", None, None]
    assert column("status", "429.0", "200", "429 Too Many Requests")[0] == [
        "error",
        "success",
        "error",
    ]
    assert column("success", "WAHR", "FALSCH")[0] == ["success", "error"]
    assert column("status", "0", "1", status="status:failed")[0] == ["success", "error"]
    assert column("error", "0", "1", status="error:success")[0] == ["error", "success"]


# -- values that are not there, or cannot be used -----------------------------------------------


def test_missing_values_of_a_row_are_not_in_its_decision() -> None:
    """Missing values are absent and never 0, and words for "no value" are no names."""
    rows = [
        {"cost": "0.1", "model": "m", "output_tokens": "5"},
        {"cost": "", "model": " ", "output_tokens": "NaN"},
        {"cost": r"\N", "model": "NULL", "output_tokens": "n/a"},
    ]
    columns = choose(rows, NONE, BOTH)
    assert [columns.row(n, rows[n]).decision for n in (1, 2)] == [BOTH, BOTH]
    assert column("model", "NaN", "m", model="model:text")[0] == ["NaN", "m"]


def test_a_cell_that_cannot_be_used_costs_its_row_that_value() -> None:
    """The note has field, rule and column, and the row counts without the value."""
    rows = [{"usd": usd} for usd in ("0.1", "0.1", "0.1", "-1", "free")]
    columns = choose(rows, NONE, BOTH)
    negative, unreadable = (columns.row(n, rows[n]) for n in (3, 4))
    assert negative.decision == unreadable.decision == BOTH
    assert negative.unread == ("cost: must be 0 or more (column usd)",)
    assert unreadable.unread == ("cost: 'free' is not a number (column usd)",)


def test_a_cell_that_would_count_as_something_else_costs_its_row() -> None:
    """A row with an unknown status is left out, because it would count as a success."""
    rows = [{"status": status} for status in ("ok", "ok", "ok", "ok", "pending")]
    with pytest.raises(ValueError, match="status: 'pending' is neither"):
        choose(rows, NONE, BOTH).row(5, rows[4])


@pytest.mark.parametrize("absent", ["2026-02-30T12:00:00Z", "30/02/2026", "2026-01-31 25:00"])
def test_a_date_that_does_not_exist_costs_its_row(absent: str) -> None:
    """If most dates of a column do not exist, the column may be something else."""
    rows = [{"when": when} for when in ["31/01/2026"] * 3 + [absent] * 3]
    columns = choose(rows, NONE, BOTH)
    assert [columns.row(n, rows[n]).at for n in range(3)] == [20_484 * DAY] * 3
    with pytest.raises(ValueError, match=r"timestamp: .* is not a time that exists"):
        columns.row(5, rows[5])
    said = doubt("when", *["31/01/2026"] * 3, *[absent] * 4)
    assert f"{absent!r} is not a time that exists (4 of 7 values)" in said


@pytest.mark.parametrize("nothing", ["", "NaN", r"\N"])
def test_a_row_without_strategy_or_provider_is_none(nothing: str) -> None:
    """Such a row is never sent."""
    rows = [{"strategy": "s"}, {"strategy": nothing}]
    columns = choose(rows, NONE, {"provider": "p"})
    with pytest.raises(ValueError, match=r"strategy: empty \(column strategy\)"):
        columns.row(2, rows[1])


# -- ids ----------------------------------------------------------------------------------------


def test_ids_that_repeat_for_different_rows_are_a_doubt() -> None:
    """Most rows would not count, so a person must decide."""
    rows = [{"id": "a", "model": str(n)} for n in range(5)]
    with pytest.raises(Uncertain, match="4 rows have the id of another row") as caught:
        choose(rows, NONE, BOTH)
    assert "--map id= (each row counts)" in str(caught.value)
    assert "--map id=id (each id counts once)" in str(caught.value)
    assert not choose(rows, {"id": ""}, BOTH).has("id")
    once = choose(rows, {"id": "id"}, BOTH)
    assert once.warnings == ("Rows with the id of another row: 4; each id counts once.",)


def test_rows_that_repeat_as_a_whole_count_once() -> None:
    """A note says so, and also that ids are missing."""
    rows = [{"id": "a", "model": "m"}] * 2 + [{"id": nothing} for nothing in ("", "null", "NaN")]
    columns = choose(rows, NONE, BOTH)
    assert columns.warnings == (
        "Rows without an id in column id: 3; one is made.",
        "Rows that repeat another row, id and all: 1; they count once.",
    )
    assert "id" not in columns.row(3, rows[3]).decision


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("when:dym", "'dym'; the forms are: dmy"),
        ("when*2", "'*2'; the forms are: dmy"),
        ("then:dmy", "there is no column 'then:dmy'"),
    ],
)
def test_unknown_forms_are_named(wish: str, words: str) -> None:
    """The error lists the known forms."""
    with pytest.raises(BadParameter, match=re.escape(words)):
        choose([{"when": "x"}], {"timestamp": wish}, BOTH)


def test_deep_objects_do_no_harm() -> None:
    """Deeply nested objects without a field are ignored."""
    row: dict[str, Any] = {"model": "m"}
    for _ in range(900):
        row = {"x": row, "model": "m"}
    assert read(row) == {**BOTH, "model": "m"}
