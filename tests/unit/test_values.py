"""Values of other libraries in a decision become the right JSON number or text."""

import dataclasses
import enum
import json
import math
import uuid
from collections import namedtuple
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import pytest

from routecast.client.decision import copied, encode
from routecast.protocol import DecisionIn
from tests.support.needs import package

BASE: dict[str, Any] = {"strategy": "s", "provider": "p"}


class StrEnum(enum.StrEnum):
    HYBRID = "hybrid"


class MixedEnum(str, enum.Enum):  # noqa: UP042  # -- programs have such enums
    HYBRID = "hybrid"


class PlainEnum(enum.Enum):
    HYBRID = "hybrid"
    NUMBER = 0.5


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Whole(int):
    pass


class Real(float):
    pass


class Tensor:
    """A tensor without dimensions which, like those of torch, always has `__index__`."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def item(self) -> Any:
        return self._value

    def __float__(self) -> float:
        return float(self._value)

    def __index__(self) -> int:
        if not isinstance(self._value, int):
            raise TypeError("only integer tensors of a single element can be converted to an index")
        return self._value


def sent(decision: Any, **more: Any) -> dict[str, Any]:
    """Return a decision as it is sent, with all digits of its numbers."""
    text, left_out = encode(copied(decision, more), "i", 0.0)
    assert left_out == []
    found: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return found


def left_out(**fields: Any) -> list[str]:
    """Return the warnings of fields that are not sent; assert that the others are."""
    text, said = encode(copied(BASE, fields), "i", 0.0)
    assert json.loads(text) == {**BASE, "id": "i", "timestamp": 0.0}
    return said


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("cost", Real(0.5), 0.5),
        ("cost", Decimal("0.00000000000000000123"), Decimal("1.23E-18")),
        ("cost", Fraction(1, 4), 0.25),
        ("cost", Tensor(0.25), 0.25),
        ("cost", 0, 0),
        ("cost", PlainEnum.NUMBER, 0.5),
        ("input_tokens", Whole(7), 7),
        ("input_tokens", Tensor(7), 7),
        ("input_tokens", 374.0, 374),
        ("input_tokens", True, True),  # for the server to refuse
        ("input_tokens", 2**70, 2**70),
        ("confidence", "high", "high"),
        ("confidence", Text("high"), "high"),
        ("latency_ms", timedelta(seconds=1.5), 1500),
        ("strategy", Text("hybrid"), "hybrid"),
        ("strategy", StrEnum.HYBRID, "hybrid"),
        ("strategy", MixedEnum.HYBRID, "hybrid"),
        ("strategy", PlainEnum.HYBRID, "hybrid"),
        ("strategy", "naïve", "naïve"),
        ("strategy", 7, 7),  # for the server to refuse
        ("id", 4711, "4711"),
        ("id", uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        ("timestamp", datetime(2026, 1, 31, tzinfo=UTC), "2026-01-31T00:00:00+00:00"),
        ("reason", "x" * 9_000, "x" * 4_000),
    ],
)
def test_a_value_is_sent_as_its_number_or_text(field: str, value: Any, expected: Any) -> None:
    """A number of any type is sent as that number, and a text of any type as that text."""
    found = sent({**BASE, field: value})[field]
    assert found == expected
    assert isinstance(found, bool) == isinstance(expected, bool)


NUMPY: list[tuple[str, Callable[[Any], Any], Any]] = [
    ("cost", lambda np: np.float64(0.5), Decimal("0.5")),
    ("cost", lambda np: np.float32(0.1), Decimal("0.10000000149011612")),
    ("cost", lambda np: np.float16(0.5), Decimal("0.5")),
    ("cost", lambda np: np.longdouble(0.5), Decimal("0.5")),
    ("cost", lambda np: np.array(0.5), Decimal("0.5")),
    ("input_tokens", lambda np: np.int64(12), 12),
    ("input_tokens", lambda np: np.uint64(2**64 - 1), 2**64 - 1),
    ("input_tokens", lambda np: np.array(12), 12),
    ("input_tokens", lambda np: np.bool_(True), True),
    ("fallback", lambda np: np.bool_(False), False),
    ("strategy", lambda np: np.str_("hybrid"), "hybrid"),
    ("id", lambda np: np.int64(7), "7"),
    ("latency_ms", lambda np: np.timedelta64(3, "s"), Decimal("3000.0")),
    ("latency_ms", lambda np: np.timedelta64(2_500_000, "ns"), Decimal("2.5")),
    ("timestamp", lambda np: np.datetime64("2026-01-31T12:00:00", "ns"), "2026-01-31T12:00:00Z"),
]


@pytest.mark.parametrize(("field", "make", "expected"), NUMPY)
def test_a_scalar_of_numpy_is_its_value(
    field: str, make: Callable[[Any], Any], expected: Any
) -> None:
    """It may have any size; a duration is converted to the unit of its field."""
    found = sent({**BASE, field: make(package("numpy"))})[field]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("field", ["cost", "input_tokens", "strategy"])
def test_a_duration_or_a_time_is_not_sent_as_a_number(field: str) -> None:
    """Numpy would convert it to a number of an unknown unit."""
    np = package("numpy")
    for value in (np.timedelta64(3, "s"), np.datetime64("2026-01-31")):
        if field == "strategy":
            with pytest.raises(ValueError, match="strategy"):
                encode({**BASE, field: value}, "i", 0.0)
        else:
            assert left_out(**{field: value})[0].startswith(f"{field}: ")


def test_rows_of_pandas_are_decisions() -> None:
    """A gap is unknown; a column with gaps has floats in place of whole numbers."""
    pd = package("pandas")
    frame = pd.DataFrame(
        {
            "strategy": ["s", "s"],
            "provider": ["p", "p"],
            "model": pd.array([pd.NA, "m"], dtype="string"),
            "reason": [math.nan, "r"],
            "input_tokens": pd.array([374.0, 5.0]),
            "timestamp": [pd.NaT, pd.Timestamp("2026-01-31T12:00:00.123456789Z")],
        }
    )
    first, second = (sent(row) for _, row in frame.iterrows())
    assert first == {**BASE, "id": "i", "timestamp": 0, "input_tokens": 374}
    at = second.pop("timestamp")
    assert at.startswith("2026-01-31T12:00:00.123456")
    assert second == {**BASE, "id": "i", "model": "m", "reason": "r", "input_tokens": 5}


def test_objects_with_fields_are_decisions() -> None:
    """Dataclasses, structs, named tuples and pydantic models may have more fields."""
    pydantic = package("pydantic")
    made = dataclasses.make_dataclass("Made", ["strategy", "provider", "cost"])
    model = pydantic.create_model("Model", strategy=str, provider=str, cost=Decimal, trace=Any)
    named = namedtuple("named", ["strategy", "provider", "cost"])
    for decision in (
        made("s", "p", 0.5),
        model(strategy="s", provider="p", cost="0.5", trace=object()),
        named("s", "p", 0.5),
        DecisionIn("s", "p", cost=0.5),
        [("strategy", "s"), ("provider", "p"), ("cost", 0.5)],
    ):
        found = sent(decision, model="m")
        assert found == {**BASE, "cost": Decimal("0.5"), "model": "m", "id": "i", "timestamp": 0}


def test_unknown_fields_are_dropped() -> None:
    """They are dropped before the decision is copied or encoded, with any value."""
    given = copied({**BASE, "trace": object(), "embedding": [b""]}, {"more": math.nan})
    assert given == BASE
    assert sent(given) == {**BASE, "id": "i", "timestamp": 0}


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("-Infinity"),
        Tensor(math.nan),
        object(),
        b"1",
        [Decimal("NaN")],
        msgspec.Raw(b"}"),
        msgspec.Raw(b'"\xff"'),
        msgspec.Raw(b"[" * 990 + b"]" * 990),
        "\ud800",
    ],
)
def test_a_field_that_cannot_be_sent_costs_only_itself(value: Any) -> None:
    """The decision is sent without it, and the warning has its name."""
    (said,) = left_out(cost=value)
    assert said.startswith("cost: ")


@pytest.mark.parametrize("value", [b"hybrid", object(), "\ud800"])
def test_a_decision_whose_name_cannot_be_sent_is_refused(value: Any) -> None:
    """Bytes are no text, because their encoding is unknown."""
    with pytest.raises(ValueError, match=r"^strategy: "):
        encode({**BASE, "strategy": value}, "i", 0.0)


@pytest.mark.parametrize("decision", [7, "text", object(), [1, 2], {1: 2}.values()])
def test_an_object_that_is_no_decision_is_rejected(decision: Any) -> None:
    """It is rejected when it is encoded; copying it raises nothing."""
    with pytest.raises(TypeError, match="is not a decision"):
        encode(copied(decision, {}), "i", 0.0)


@pytest.mark.parametrize("value", ["", True, 1.5, [1]])
def test_a_bad_id_is_replaced_by_the_recorder_s(value: object) -> None:
    """A server would make a new id for each attempt, and count the decision each time."""
    text, left_out = encode({**BASE, "id": value}, "i", 0.0)
    assert json.loads(text)["id"] == "i"
    assert len(left_out) == 1
