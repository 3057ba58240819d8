"""The token or API key of a client, and the `Authorization` header made from it."""

import re
from collections.abc import Callable
from typing import Final

from routecast.errors import Unauthenticated

# A function is called each time a token is needed, so that it can return a new one.
Token = str | Callable[[], str]
# The environment variable from which commands take it: others can see a command's options.
API_KEY: Final = "ROUTECAST_API_KEY"
_TOKEN_TEXT: Final = re.compile(r"[!-~]+")
_WHERE: Final = f"as `token` in a program, in {API_KEY} for a command"


def is_token(text: str) -> bool:
    """Whether a text can be a token or an API key."""
    return _TOKEN_TEXT.fullmatch(text) is not None


def text_of(token: Token) -> str:
    """Return the token or API key itself.

    Whitespace around it is removed, such as the line end of its file. Raises Unauthenticated,
    without the token in its text, if the token is not valid; and whatever the function raises.
    """
    text = token if isinstance(token, str) else token()
    if not isinstance(text, str) or not is_token(text.strip()):
        raise Unauthenticated(401, "the token must be a text of visible ASCII characters")
    return text.strip()


def bearer(token: Token) -> str:
    """Return the value of the header `Authorization`. Raises what `text_of` does."""
    return f"Bearer {text_of(token)}"


def advice(token: Token | None) -> str:
    """Return what a person can do if a server does not accept this token, or needs one."""
    if token is None:
        return f"give a token or an API key, {_WHERE}"
    if isinstance(token, str):
        return f"give another token or API key, {_WHERE}; a function as `token` can renew it"
    return "the function `token` must return another one"
