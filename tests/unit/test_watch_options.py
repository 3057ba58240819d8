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
def test_keys(keys: str, choice: Choice) -> None:
    """Names and windows go round; a capital goes the other way; other keys do nothing."""
    assert pressed(keys) == choice


def test_intervals_have_ends() -> None:
    """And one that was asked for in between is left for the next."""
    assert pressed("+" * 20).interval == INTERVALS[0]
    assert pressed("-" * 20).interval == INTERVALS[-1]
    assert pressed("+", Choice(interval=3)).interval == 2
    assert pressed("-", Choice(interval=3)).interval == 5


def test_several_names_give_way_to_one() -> None:
    """What the command line asked for is no turn of the key: the first name comes next."""
    assert pressed("s", Choice(strategy=("a", "b"))).strategy == ("hybrid",)


def test_a_choice_in_words_and_as_asked() -> None:
    """What stands above the numbers is what the server is asked for."""
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
def test_the_footer_fits(width: int) -> None:
    """However narrow: fewer words, and always the way to the rest."""
    line = footer(Choice(interval=0.5), width)
    assert len(line) <= width
    assert line.endswith("? help")
