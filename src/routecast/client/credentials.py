"""What a client shows to be let in."""

from collections.abc import Callable

# A function is asked for a token each time one is needed, so that it can bring a new one.
Token = str | Callable[[], str]


def bearer(token: Token) -> str:
    """Return the value of the header `Authorization`."""
    return f"Bearer {token if isinstance(token, str) else token()}"
