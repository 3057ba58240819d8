"""HTTP answers: whether Routecast or a proxy sent them, redirects, and explanations in words."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from routecast.protocol import Problem
from routecast.retry import TOO_LARGE, retry_after

# Not 303, which asks for a GET of another resource, and not for the same request.
_REDIRECTS: Final = frozenset({301, 302, 307, 308})
_SIGN_IN: Final = frozenset({401, 403, 407})
_LONGEST_TEXT: Final = 500
_MEDIA_TYPE: Final = "application/problem+json"

_problem: Final = msgspec.json.Decoder(Problem)


class Headers(Protocol):
    """Header fields by name; upper and lower case are equal."""

    def get(self, name: str, default: str, /) -> str:
        """Return the value of a field."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A complete HTTP answer."""

    status: int
    phrase: str
    headers: Headers | Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """The media type of its body, in lower case, without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def problem(self) -> Problem | None:
        """Routecast's own problem document; None if a proxy or another server answered."""
        if self.media_type != _MEDIA_TYPE:
            return None
        try:
            problem = _problem.decode(self.body)
        except (msgspec.DecodeError, RecursionError):  # it is cut off, or not Routecast's
            return None
        return problem if problem.status == self.status else None

    @property
    def lacks_scope(self) -> bool:
        """Whether the token or API key does not have the scope that is needed (RFC 6750, 3.1)."""
        return 'error="insufficient_scope"' in self.headers.get("WWW-Authenticate", "")

    @property
    def retry_after(self) -> int:
        """The seconds of its `Retry-After`; 0 without one."""
        return retry_after(self.headers.get("Retry-After", ""))


def followed(answer: HttpAnswer, url: str) -> str | None:
    """Return the URL to which a redirect sends the same request; None if it must not be followed.

    Only a redirect to the same host and path over TLS is followed, because the request has
    decisions and may have a token.
    """
    target = _target(answer, url)
    if target is None or answer.status not in _REDIRECTS or target.scheme not in ("https", "wss"):
        return None
    asked = urlsplit(url)
    if (target.hostname, target.path) != (asked.hostname, asked.path):
        return None
    secure = {"http": "https", "ws": "wss"}.get(asked.scheme, asked.scheme)
    user, at, _ = asked.netloc.rpartition("@")
    host = f"[{target.hostname}]" if ":" in (target.hostname or "") else target.hostname
    port = "" if target.port is None else f":{target.port}"
    found = asked._replace(scheme=secure, netloc=f"{user}{at}{host}{port}").geturl()
    return None if found == url else found


def explain(answer: HttpAnswer, url: str) -> str:
    """Return what was answered, and what a person can do; the caller puts the subject before it."""
    problem = answer.problem
    if problem is not None:
        advice = "; use a token or an API key that has it" if answer.lacks_scope else ""
        return f"answered {answer.status}: {plain(problem.detail)}{advice}"
    target = _target(answer, url)
    if target is not None:
        path = urlsplit(url).path
        shown = target._replace(
            netloc=target.netloc.rpartition("@")[2],
            path=target.path.removesuffix(path),
            query="",  # it may contain a secret
            fragment="",
        )
        advice = "use that address" if target.path.endswith(path) else _SIGN_IN_ADVICE
        return f"answered {answer.status} to {plain(shown.geturl())}: {advice}"
    said = plain(f"{answer.status} {answer.phrase}".strip())
    if answer.status == TOO_LARGE:
        return f"answered {said}: too large for a proxy in between"
    if 200 <= answer.status < 300:
        kind = plain(answer.media_type) or "no media type"
        return f"answered {answer.status} with {kind}, not as Routecast does: {_SIGN_IN_ADVICE}"
    if answer.status in _SIGN_IN:
        return f"answered {said}, not as Routecast does: {_SIGN_IN_ADVICE}"
    return f"answered {said}, not as Routecast does"


_SIGN_IN_ADVICE: Final = "a proxy may ask for a sign-in, or the address is wrong"


def plain(text: str) -> str:
    """Return a server's text for a log: at most 500 characters, without control characters."""
    return "".join(sign if sign.isprintable() else "�" for sign in text[:_LONGEST_TEXT])


def _target(answer: HttpAnswer, url: str) -> SplitResult | None:
    """Return the target of a redirect; None if the answer is not one, or has no valid target."""
    location = answer.headers.get("Location", "")
    if not 300 <= answer.status < 400 or not location:
        return None
    try:
        target = urlsplit(urljoin(re.sub("^ws", "http", url), location))
        _ = target.port  # raises ValueError if it is invalid
    except ValueError:
        return None
    return target if target.hostname else None
