"""The documents say what the code does."""

import inspect
import re
from pathlib import Path

from routecast.cli.serve import serve
from routecast.config import Settings
from routecast.protocol import FIELDS, WINDOWS, DecisionIn

ROOT = Path(__file__).parents[2]


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
    """The wire's page names each field of a decision and of the document, and each window."""
    text = (ROOT / "docs/protocol.md").read_text("utf-8")
    for name in (*DecisionIn.__struct_fields__, *WINDOWS):
        assert f"`{name}`" in text, name
    for name in FIELDS:
        assert f"`{name}`" in text or f'"{name}"' in text, name


def test_links_lead_somewhere() -> None:
    """Every relative link of the documents points at a file that is there."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    assert len(documents) >= 5
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
