"""URLs of engines: parsing them, and showing them without passwords."""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*", re.ASCII)
# Text that is certainly a host with an optional port, and not part of a password.
_URL_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]*)(?::([0-9]{1,5}))?", re.ASCII)
_FILE_PATH: Final = re.compile(r"[\w./\\ -]+")
_HIDDEN: Final = "***"


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL.

    Raises ValueError if the URL is invalid, or if its password seems to contain a character that
    must be escaped. The text of the error does not contain the URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("cannot be read as a URL; are its brackets in pairs?") from None
    query_key = parts.query.partition("@")[0]
    cut = "@" in parts.path + parts.fragment or ("@" in parts.query and "=" not in query_key)
    if parts.netloc and "@" not in parts.netloc and cut:
        raise ValueError(
            "has an @ after a /, ? or #: in names and passwords, write these characters as "
            "%2F (/), %3F (?), %23 (#) and %40 (@)"
        )
    return parts


def masked(url: str) -> str:
    """Return a URL for a log or an error, without its user, its password and its options.

    Of an invalid URL, it returns only the parts that cannot belong to a password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url if _FILE_PATH.fullmatch(url) else _HIDDEN
    if not _SCHEME.fullmatch(scheme):
        return _HIDDEN
    shown, *options = re.split(r"[?#]", rest)
    if any("@" in option for option in options):  # perhaps a password with ? or #
        return f"{scheme}://{_HIDDEN}"
    login, _, place = shown.rpartition("@")
    hosts, slash, path = place.partition("/")
    known = ",".join(host if _is_host(host) else _HIDDEN for host in hosts.split(","))
    return f"{scheme}://{f'{_HIDDEN}@' if login else ''}{known}{slash}{path}"


def _is_host(text: str) -> bool:
    found = _URL_HOST.fullmatch(text)
    return found is not None and int(found[1] or 0) <= 65_535
