"""The token or API key that commands send to a server."""

import os

from routecast.cli.terminal import BAD_USAGE, fail
from routecast.client.auth import API_KEY, is_token


def api_key() -> str | None:
    """Return the token or API key of the environment; None if there is none.

    It is no option, because others on this machine could see it. Exits if it cannot be one.
    """
    text = os.environ.get(API_KEY, "").strip()
    if text and not is_token(text):
        fail(f"{API_KEY}: must be visible ASCII characters, without spaces", BAD_USAGE)
    return text or None
