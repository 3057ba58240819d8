"""Undocumented parts of libraries that the server relies on: they are unchanged.

`pyproject.toml` has an upper bound for each of these libraries. Where a new version fails here,
look at each place that is named, mend it, and raise the bound.
"""

import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State
from websockets.streams import StreamReader

PYPROJECT: Final = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.parametrize("library", ["uvicorn", "websockets"])
def test_each_library_has_an_upper_bound(library: str) -> None:
    """The server's requirement has the bound, and the installed version is below it."""
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    (needed,) = (
        each for each in project["optional-dependencies"]["server"] if each.startswith(library)
    )
    bound = tuple(map(int, needed.partition("<")[2].split(".")))
    installed = tuple(map(int, version(library).split(".")[: len(bound)]))
    assert installed < bound


def test_the_parser_of_websockets_waits_at_the_start_of_a_frame() -> None:
    """`MessageAssembler.idle` in `edge/ws/messages.py` needs it, to free parsers when idle."""
    protocol = Protocol(Side.SERVER, state=State.OPEN)
    data = Frame(Opcode.TEXT, b"{}").serialize(mask=True)
    parser: Any = protocol.parser
    for size in range(len(data)):
        protocol.receive_data(data[size : size + 1])
        is_whole = size == len(data) - 1
        protocol.events_received()
        waits_for = parser.gi_yieldfrom.gi_code
        assert (waits_for is StreamReader.at_eof.__code__) is is_whole
    assert protocol.current_size is None
    assert protocol.eof_sent is False
    assert protocol.close_rcvd is protocol.close_sent is None


def test_the_http_protocol_of_uvicorn_has_what_we_use() -> None:
    """`edge/http/http_protocol.py` overrides or calls these methods, and sets these attributes."""
    methods = {
        "connection_made": ["transport"],
        "connection_lost": ["exc"],
        "data_received": ["data"],
        "on_message_begin": [],
        "on_header": ["name", "value"],
        "on_headers_complete": [],
        "on_body": ["body"],
        "on_message_complete": [],
        "on_response_complete": [],
        "shutdown": [],
        "pause_writing": [],
        "resume_writing": [],
        "_start_asgi_task": ["cycle", "app"],
    }
    for name, parameters in methods.items():
        found = inspect.signature(getattr(HttpToolsProtocol, name))
        assert list(found.parameters) == ["self", *parameters], name
    source = inspect.getsource(HttpToolsProtocol.__init__)
    for attribute in (
        *("access_log", "access_logger", "app", "app_state", "asgi_version", "config"),
        *("connections", "cycle", "expect_100_continue", "flow", "headers", "logger", "loop"),
        *("parser", "pipeline", "root_path", "scheme", "scope", "server", "server_state"),
        *("transport", "ws_protocol_class"),
    ):
        assert f"self.{attribute}" in source, attribute


def test_a_request_of_uvicorn_has_what_we_use() -> None:
    """`Cycle` in `edge/http/http_protocol.py` passes these arguments, and uses these attributes."""
    parameters = list(inspect.signature(RequestResponseCycle.__init__).parameters)
    assert parameters == [
        "self",
        *("scope", "transport", "flow", "logger", "access_logger", "access_log"),
        *("default_headers", "message_event", "expect_100_continue", "keep_alive", "on_response"),
    ]
    source = inspect.getsource(RequestResponseCycle)
    for attribute in (
        *("body", "chunked_encoding", "disconnected", "expected_content_length", "keep_alive"),
        *("message_event", "response_complete", "response_started"),
    ):
        assert f"self.{attribute}" in source, attribute
    assert {"pause_reading", "resume_reading", "write_paused"} <= {
        *vars(FlowControl),
        *inspect.getsource(FlowControl.__init__).replace("self.", " ").split(),
    }
