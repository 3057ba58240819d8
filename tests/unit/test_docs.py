"""The documents say what the code does."""

import inspect
import re
from pathlib import Path
from typing import Final, get_args

import msgspec

from routecast.cli.serve import serve
from routecast.config import Settings
from routecast.core.history import GROUPS, HISTORY_FIELDS
from routecast.protocol import (
    FIELDS,
    SUBPROTOCOLS,
    WINDOWS,
    ClientMessage,
    CloseCode,
    DecisionIn,
    ErrorCode,
    ServerMessage,
)

ROOT = Path(__file__).parents[2]
# Of authentication, which is not there yet; and those that are an HTTP answer before any upgrade.
LATER: Final = {
    CloseCode.UNAUTHENTICATED,
    CloseCode.FORBIDDEN,
    CloseCode.POLICY,
    CloseCode.FULL,
}


def rows(document: str) -> list[list[str]]:
    """Return the cells of all table rows of a document."""
    lines = (ROOT / document).read_text("utf-8").splitlines()
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| `")
    ]


def test_every_setting_is_listed_as_it_is() -> None:
    """The table of settings has each variable, its option, default and meaning, in order."""
    options = {
        {"database": "database_url", "redis": "redis_url"}.get(name, name): name
        for name in inspect.signature(serve).parameters
    }
    expected = []
    for name, field in Settings.model_fields.items():
        option = f"--{options[name].replace('_', '-')}" if name in options else ""
        default = "" if field.default in (None, "", frozenset()) else str(field.default)
        expected.append([f"ROUTECAST_{name.upper()}", option, default, field.description])
    assert rows("docs/settings.md") == expected


def test_every_field_is_documented() -> None:
    """The wire's page names each field of a decision, of the document and of the past."""
    text = (ROOT / "docs/protocol.md").read_text("utf-8")
    for name in (*DecisionIn.__struct_fields__, *WINDOWS, *HISTORY_FIELDS, *GROUPS):
        assert f"`{name}`" in text, name
    for name in FIELDS:
        assert f"`{name}`" in text or f'"{name}"' in text, name


def test_every_message_is_documented() -> None:
    """The wire's page shows each message of routecast.v1 and names all it may hold."""
    text = (ROOT / "docs/protocol.md").read_text("utf-8")
    for kind in (*get_args(ClientMessage), *get_args(ServerMessage)):
        assert f"`{kind.__struct_config__.tag}`" in text, kind
        for field in msgspec.structs.fields(kind):
            assert f"`{field.encode_name}`" in text or f'"{field.encode_name}"' in text, field
    for code in (*ErrorCode, *SUBPROTOCOLS):
        assert f"`{code}`" in text, code
    for close in CloseCode:
        if close not in LATER:
            assert str(int(close)) in text, close


def test_links_lead_somewhere() -> None:
    """Every relative link of the documents points at a file that is there."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    assert len(documents) >= 5
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
