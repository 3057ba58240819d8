"""The documents say what the code does."""

import inspect
import re
from pathlib import Path
from typing import Final, get_args

import msgspec

from routecast.cli.serve import serve
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
from routecast.server.config import Settings

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


def slugs(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and the site make them."""
    found: dict[str, int] = {}
    anchors = set()
    for line in without_code(document.read_text("utf-8")).splitlines():
        if heading := re.match(r"#+\s+(.*)", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            count = found[slug] = found.get(slug, -1) + 1
            anchors.add(f"{slug}-{count}" if count else slug)
    return anchors


def without_code(text: str) -> str:
    """Return a document without its fenced blocks, whose lines are neither headings nor links."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_links_lead_somewhere() -> None:
    """Every relative link of the documents points at a file and a heading that exist."""
    documents = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
        ROOT / "clients/js/README.md",
    ]
    assert len(documents) >= 5
    for document in documents:
        links = re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text("utf-8")))
        for link in links:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), f"{document.name}: {link}"
            if anchor and target.suffix == ".md":
                assert anchor in slugs(target), f"{document.name}: {link}"


def test_navigation_has_every_page() -> None:
    """The site's navigation lists each page of `docs/` once."""
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = re.findall(r": (\S+\.md)$", text, flags=re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(pages) == sorted(str(page.relative_to(docs)) for page in docs.glob("**/*.md"))
