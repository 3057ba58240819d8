"""Messages of routecast.v1: the server reads and writes the golden ones."""

import json
from typing import Any, get_args

import msgspec
import pytest

from routecast.patch import apply, diff
from routecast.protocol import ClientMessage, ServerMessage
from tests.support.wire import GOLDEN

_TYPES: dict[str, Any] = {"client": ClientMessage, "server": ServerMessage}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_message_is_read_and_written_back(name: str) -> None:
    """JSON and MessagePack have the same fields and values in the same order."""
    case = GOLDEN[name]
    assert case["name"] == name
    kind = _TYPES[case["direction"]]
    message = msgspec.json.decode(json.dumps(case["message"]), type=kind)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(case["message"]), type=kind) == message
    if case["direction"] == "server":
        assert msgspec.json.encode(message).decode() == compact(case["message"])
        packed = msgspec.msgpack.encode(message)
        assert compact(msgspec.msgpack.decode(packed)) == compact(case["message"])


@pytest.mark.parametrize("name", [name for name, case in GOLDEN.items() if "before" in case])
def test_golden_delta_leads_from_before_to_after(name: str) -> None:
    """The patch is the smallest one."""
    case = GOLDEN[name]
    patch = case["message"]["data"]
    assert apply(case["before"], patch) == case["after"]
    assert diff(case["before"], case["after"]) == patch


def test_every_kind_of_message_has_a_golden_one() -> None:
    """The kinds are those of both sides."""
    for direction, union in _TYPES.items():
        shown = {c["message"]["type"] for c in GOLDEN.values() if c["direction"] == direction}
        assert shown == {kind.__struct_config__.tag for kind in get_args(union)}


def compact(value: Any) -> str:
    """Return a value as the server writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
