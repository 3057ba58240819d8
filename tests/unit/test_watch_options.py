"""The options of `routecast watch`: each key changes one of them, and back again."""

import pytest

from routecast.cli.watch.options import INTERVALS, Choice, footer

KNOWN = {"strategy": ("hybrid", "cost"), "provider": ("gemini",)}


def pressed(keys: str, choice: Choice | None = None) -> Choice:
    choice = choice or Choice()
    for key in keys:
        choice = choice.pressed(key, KNOWN)
    return choice


@pytest.mark.parametrize(
    ("keys", "choice"),
    [
        ("w", Choice(window="5m")),
        ("wwwww", Choice()),
        ("W", Choice(window="7d")),
        ("s", Choice(strategy=("hybrid",))),
        ("ss", Choice(strategy=("cost",))),
        ("sss", Choice()),
        ("S", Choice(strategy=("cost",))),
        ("p", Choice(provider=("gemini",))),
        ("pp", Choice()),
        ("+", Choice(interval=0.5)),
        ("-", Choice(interval=2.0)),
        ("wsp-a", Choice(interval=2.0)),
        ("xyz", Choice()),
    ],
)
def test_keys_change_options(keys: str, choice: Choice) -> None:
    """Names and windows go round, with capitals backwards; other keys do nothing."""
    assert pressed(keys) == choice


def test_intervals_have_a_first_and_a_last_one() -> None:
    """From an interval between two steps, a key leads to the next step."""
    assert pressed("+" * 20).interval == INTERVALS[0]
    assert pressed("-" * 20).interval == INTERVALS[-1]
    assert pressed("+", Choice(interval=3)).interval == 2
    assert pressed("-", Choice(interval=3)).interval == 5


def test_a_key_replaces_several_names_by_the_first() -> None:
    """Names of the command line are no step, so the first known name comes next."""
    assert pressed("s", Choice(strategy=("a", "b"))).strategy == ("hybrid",)


def test_a_choice_has_words_and_a_query() -> None:
    """The words above the numbers say what the server is asked for."""
    choice = Choice("5m", 0.5, ("a", "b"), (), ("m",))
    assert choice.words == "the last 5m, strategy a, strategy b, model m"
    assert choice.asked == {
        "window": "5m",
        "interval": 0.5,
        "strategy": ("a", "b"),
        "model": ("m",),
    }
    assert Choice().words == ""


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_the_footer_fits_the_terminal(width: int) -> None:
    """A narrow terminal has fewer words, and always the key for help."""
    line = footer(Choice(interval=0.5), width)
    assert len(line) <= width
    assert line.endswith("? help")
