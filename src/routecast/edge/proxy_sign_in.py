"""Signing in by a proxy that authenticates: a field of each request names the person.

oauth2-proxy and similar programs write a name, and groups. That counts only if the request comes
from a trusted proxy, which must remove such a field of a client. Cloudflare Access signs what it
says, so it counts wherever the request comes from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from routecast.edge.proxies import Proxies
from routecast.errors import BadHead

CLOUDFLARE_FIELD: Final = b"cf-access-jwt-assertion"


@dataclass(frozen=True, slots=True)
class NamedIn:
    """The name and the groups of a person in a request, as a trusted proxy has written them."""

    text: str
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AssertionIn:
    """A token in which a proxy names a person."""

    text: str


class ProxySignIn:
    """Finds what a proxy says about a person. A `name_field` or `groups_field` of "" is none."""

    def __init__(
        self,
        proxies: Proxies,
        *,
        name_field: str = "",
        groups_field: str = "",
        cloudflare: bool = False,
    ) -> None:
        self._proxies = proxies
        self._name_field = name_field.lower().encode("latin-1")
        self._groups_field = groups_field.lower().encode("latin-1")
        self._cloudflare = cloudflare

    @property
    def is_on(self) -> bool:
        """Whether any proxy may sign people in."""
        return bool(self._name_field) or self._cloudflare

    def find(
        self, remote: str, fields: Mapping[bytes, Sequence[bytes]]
    ) -> NamedIn | AssertionIn | None:
        """Return the person whom a proxy at `remote` names; None if it names none.

        Raises BadHead if it is said twice: a client may have added one of them.
        """
        if self._cloudflare and CLOUDFLARE_FIELD in fields:
            return AssertionIn(_only(fields, CLOUDFLARE_FIELD))
        if not self._name_field or self._name_field not in fields:
            return None
        if not self._proxies.is_trusted(remote):
            return None
        name = _only(fields, self._name_field)
        groups = _only(fields, self._groups_field) if self._groups_field in fields else ""
        named = (group.strip() for group in groups.split(","))
        return NamedIn(name, tuple(group for group in named if group)) if name else None


def _only(fields: Mapping[bytes, Sequence[bytes]], name: bytes) -> str:
    values = fields[name]
    if len(values) != 1:
        raise BadHead(f"the field {name.decode('latin-1')} comes more than once")
    return _text(values[0]).strip()


def _text(value: bytes) -> str:
    """Return a value as text: UTF-8, as proxies write names, or else ISO-8859-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
