"""The documents agree with the code: settings, fields, limits, metrics, links and paths."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Final, get_args

import msgspec

from routecast.cli.serve import serve
from routecast.core.history import GROUPS, HISTORY_FIELDS
from routecast.instruments import Instruments
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
SOURCE = ROOT / "src"
# Codes that are sent as an HTTP status.
LATER: Final = {
    CloseCode.POLICY,
    CloseCode.FULL,
}

# Documents, beside those in `docs/topics/`, that name files of the source.
ABOUT_THE_CODE: Final = ("ARCHITECTURE.md", "CONTRIBUTING.md", "docs/conformance.md")


def rows(document: str) -> list[list[str]]:
    """Return the cells of all table rows of a document."""
    lines = (ROOT / document).read_text("utf-8").splitlines()
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| `")
    ]


def test_every_setting_is_documented() -> None:
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
    """`docs/protocol.md` names each field of a decision, of the document and of the history."""
    text = (ROOT / "docs/protocol.md").read_text("utf-8")
    for name in (*DecisionIn.__struct_fields__, *WINDOWS, *HISTORY_FIELDS, *GROUPS):
        assert f"`{name}`" in text, name
    for name in FIELDS:
        assert f"`{name}`" in text or f'"{name}"' in text, name


def test_every_message_is_documented() -> None:
    """`docs/protocol.md` has each message of routecast.v1, and names each of its fields."""
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


def test_links_have_a_target() -> None:
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


def test_every_metric_is_in_the_glossary() -> None:
    """The glossary has the names that Prometheus reads, and no others."""
    text = (ROOT / "docs/glossary.md").read_text("utf-8")
    listed = re.findall(r"^\| `(routecast_\w+)` \|", text, flags=re.MULTILINE)
    families = Instruments().registry.collect()
    told = [f"{each.name}_total" if each.type == "counter" else each.name for each in families]
    assert sorted(listed) == sorted(told)


# -- limits -------------------------------------------------------------------------------------


def constants() -> dict[str, list[str]]:
    """Return the modules of Routecast that define each constant, by its name."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.glob("routecast/**/*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for node in ast.parse(path.read_text("utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets += [node.target] if isinstance(node, ast.AnnAssign) else []
            for target in targets:
                if isinstance(target, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9_]+", target.id):
                    found.setdefault(target.id, []).append(module)
    return found


def written(value: float) -> Iterator[str]:
    """Yield the ways in which documents write a count, bytes, seconds or a share."""
    yield f"{value:,}" if isinstance(value, int) else f"{value:g}"
    for unit, size in {"MiB": 2**20, "KiB": 2**10, "%": 0.01, "ms": 0.001, "s": 1000}.items():
        yield f"{value / size:g} {unit}"


def test_documented_limits_are_those_of_the_code() -> None:
    """Each row of the tables of limits has the value of every constant that it names."""
    text = (ROOT / "docs/topics/limits-and-queues.md").read_text("utf-8")
    modules = constants()
    checked = 0
    for line in text.splitlines():
        *cells, named = line.strip("|").split("|") if line.startswith("| ") else [""]
        for name in re.findall(r"`(_?[A-Z][A-Z0-9_]+)`", named):
            if name.startswith("ROUTECAST_"):
                assert name.removeprefix("ROUTECAST_").lower() in Settings.model_fields, name
                continue
            assert name in modules, name
            values = [getattr(import_module(module), name) for module in modules[name]]
            forms = {form for value in values for form in written(value)}
            found = [rf"(?<![\d.,]){re.escape(form)}(?![\d%]|[.,]\d)" for form in forms]
            assert re.search("|".join(found), " ".join(cells)), f"{name} = {values}: {line}"
            checked += 1
    assert checked > 100


# -- files --------------------------------------------------------------------------------------


def test_files_that_documents_name_exist() -> None:
    """Each path in the documents about the code is that of a file or folder.

    It is relative to the repository or to `src/routecast`; a name alone is that of any file.
    """
    tracked = [
        path
        for folder in ("src", "tests", "clients/js", "docs", "deploy", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if "node_modules" not in path.parts
    ]
    names = {path.name for path in (*tracked, *ROOT.iterdir())}
    documents = (*ROOT.glob("docs/topics/*.md"), *map(ROOT.joinpath, ABOUT_THE_CODE))
    for document in documents:
        text = without_code(document.read_text("utf-8"))
        for path in re.findall(r"`([\w./-]+(?:\.(?:py|js|ts|sql|md|json|toml|yml)|/))`", text):
            if path.startswith("/") or path.rstrip("/") in names:
                continue
            places = (ROOT / path, SOURCE / "routecast" / path)
            assert any(place.exists() for place in places), f"{document.name}: {path}"


def test_the_architecture_names_every_part_of_the_package() -> None:
    """The table of layers has each package, and each module outside of packages."""
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    layers = text.partition("## Layers")[2].partition("\n## ")[0]
    for path in (SOURCE / "routecast").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert f"`{path.name}`" in layers, path.name
        elif (path / "__init__.py").exists():
            assert f"`{path.name}/`" in layers, path.name


def test_navigation_has_every_page() -> None:
    """The site's navigation lists each page of `docs/` once."""
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = re.findall(r": (\S+\.md)$", text, flags=re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(pages) == sorted(str(page.relative_to(docs)) for page in docs.glob("**/*.md"))
