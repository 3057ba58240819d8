"""URLs of engines: reading them, and showing them without what may be secret."""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*", re.ASCII)
# What is certainly a host with an optional port, and no part of a password.
_URL_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]*)(?::([0-9]{1,5}))?", re.ASCII)
_FILE_PATH: Final = re.compile(r"[\w./\\ -]+")
_HIDDEN: Final = "***"


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL.

    Raises ValueError, whose text shows nothing of the URL, where it cannot be read, or where a
    password seems to have signs in it that end the part of a URL it is in.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("cannot be read as a URL; are its brackets in pairs?") from None
    query_key = parts.query.partition("@")[0]
    cut = "@" in parts.path + parts.fragment or ("@" in parts.query and "=" not in query_key)
    if parts.netloc and "@" not in parts.netloc and cut:
        raise ValueError(
            "has an @ after a sign that ends the part for names and passwords: write such signs "
            "as %2F (/), %3F (?), %23 (#) and %40 (@)"
        )
    return parts


def masked(url: str) -> str:
    """Return a URL for a log or an error, without its user, its password and its options.

    Of a URL that is not as it should be, only what cannot be part of a password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url if _FILE_PATH.fullmatch(url) else _HIDDEN
    if not _SCHEME.fullmatch(scheme):
        return _HIDDEN
    shown, *options = re.split(r"[?#]", rest)
    if any("@" in option for option in options):  # a password with such a sign in it, perhaps
        return f"{scheme}://{_HIDDEN}"
    login, _, place = shown.rpartition("@")
    hosts, slash, path = place.partition("/")
    known = ",".join(host if _is_host(host) else _HIDDEN for host in hosts.split(","))
    return f"{scheme}://{f'{_HIDDEN}@' if login else ''}{known}{slash}{path}"


def _is_host(text: str) -> bool:
    found = _URL_HOST.fullmatch(text)
    return found is not None and int(found[1] or 0) <= 65_535
