"""The token of a client, and the `Authorization` header made from it."""

import re
from collections.abc import Callable
from typing import Final

from routecast.errors import Unauthenticated

# A function is called each time a token is needed, so that it can return a new one.
Token = str | Callable[[], str]
_TOKEN_TEXT: Final = re.compile(r"[!-~]+")


def bearer(token: Token) -> str:
    """Return the value of the header `Authorization`.

    Whitespace around the token is removed, such as the line end of its file. Raises
    Unauthenticated, without the token in its text, if the token is not valid; and whatever the
    function raises.
    """
    text = token if isinstance(token, str) else token()
    if not isinstance(text, str) or not _TOKEN_TEXT.fullmatch(text.strip()):
        raise Unauthenticated(401, "the token must be a text of visible ASCII characters")
    return f"Bearer {text.strip()}"
