"""No two classes, types or constants of the code share a name."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "routecast"


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the path and the syntax tree of each module."""
    for path in sorted(SOURCE.rglob("*.py")):
        yield str(path.relative_to(SOURCE)), ast.parse(path.read_text("utf-8"))


def assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Yield the name and the value of each assignment at the top of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value


def is_type_variable(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "TypeVar"


def is_constant(name: str, value: ast.expr) -> bool:
    return name.isupper() and not is_type_variable(value)


def is_type(name: str, value: ast.expr) -> bool:
    is_capitalized = name.lstrip("_")[:1].isupper() and not name.isupper()
    return is_capitalized and not is_type_variable(value)


def test_no_two_classes_have_one_name() -> None:
    """A class must not have the name of another module's type either."""
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path)
        for name, value in assignments(tree):
            if is_type(name, value):
                places[name].append(path)
    assert len(places) > 300
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_two_constants_with_one_name_have_different_values() -> None:
    """A module that needs the same value imports the constant."""
    values: dict[str, dict[str, str]] = defaultdict(dict)
    for path, tree in modules():
        for name, value in assignments(tree):
            if is_constant(name, value):
                values[name][path] = ast.unparse(value)
    assert len(values) > 500
    assert {name: found for name, found in values.items() if len(set(found.values())) > 1} == {}
