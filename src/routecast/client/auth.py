"""What a client shows to be let in."""

import re
from collections.abc import Callable
from typing import Final

from routecast.errors import Unauthenticated

# A function is asked for a token each time one is needed, so that it can bring a new one.
Token = str | Callable[[], str]
_TOKEN_TEXT: Final = re.compile(r"[!-~]+")


def bearer(token: Token) -> str:
    """Return the value of the header `Authorization`.

    Space around a token is left out, such as the end of a line in its file. Raises Unauthenticated,
    which does not show it, where it is no token; and what a function raises.
    """
    text = token if isinstance(token, str) else token()
    if not isinstance(text, str) or not _TOKEN_TEXT.fullmatch(text.strip()):
        raise Unauthenticated(401, "the token must be a text of visible ASCII characters")
    return f"Bearer {text.strip()}"
