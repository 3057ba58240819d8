"""Addresses: the URL of a PostgreSQL database, and the meaning of its parameters.

URLs come from people, from libpq's documentation and from hosting providers. Each parameter is
used, or is ignored with a line in the log, or is refused by name.
"""

import difflib
import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlencode

from routecast.errors import BadDatabase
from routecast.urls import split_url

# The time that one host has to accept a connection, in seconds; less if there are other hosts to
# try (`Connector.connect`).
HOST_CONNECT_SECONDS: Final = 5.0
# The longest such time that a URL can set, in seconds.
MAX_CONNECT_SECONDS: Final = 60

# A connection that has been quiet for KEEPALIVE_IDLE seconds is probed every KEEPALIVE_INTERVAL
# seconds, and is lost after KEEPALIVE_COUNT probes without an answer. It is also lost if its data
# are not acknowledged within DATABASE_UNACKED_MS.
KEEPALIVE_IDLE: Final = 30
KEEPALIVE_INTERVAL: Final = 5
KEEPALIVE_COUNT: Final = 3
DATABASE_UNACKED_MS: Final = 15_000

APPLICATION: Final = "routecast"

# The roles of a session, in the order in which they are tried: None for any, False if it must
# write, True if it must be read-only.
_ROLES: Final[Mapping[str, tuple[bool | None, ...]]] = {
    "any": (None,),
    "read-write": (False,),
    "primary": (False,),
    "read-only": (True,),
    "standby": (True,),
    "prefer-standby": (True, None),
}
_TLS_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# asyncpg reads these from the URL.
_FILES: Final = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
_PASSED: Final = _FILES | {
    *("host", "port", "dbname", "database", "user", "password", "passfile", "service"),
    *("sslmode", "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"),
}

# Parameters without a meaning here, and why.
_POOL: Final = "ROUTECAST_DATABASE_CONNECTIONS limits the connections of a node"
_OWN_SCHEMA: Final = "Routecast keeps its tables in the schema routecast"
_OWN_TIMES: Final = "Routecast has time limits of its own"
_IGNORED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            *("connection_limit", "pool_max_conns", "pool_min_conns", "pool_size", "pool"),
            *("max_overflow", "pool_max_conn_lifetime", "pool_max_conn_idle_time"),
            *("single_use_connections",),
        ),
        _POOL,
    ),
    **dict.fromkeys(("pool_timeout", "socket_timeout", "timeout", "reaping_frequency"), _OWN_TIMES),
    **dict.fromkeys(("schema", "currentSchema"), _OWN_SCHEMA),
    **dict.fromkeys(("supa", "workaround", "uselibpqcompat"), "it is for other programs"),
    "load_balance_hosts": "hosts are tried in the order of the URL, the one in use first",
    "sslcompression": "no connection is compressed",
    "sslsni": "TLS always tells the server the name of its host",
    "gssdelegation": "no credentials are passed on",
    "min_protocol_version": "protocol 3.0 is used",
    "max_protocol_version": "protocol 3.0 is used",
}

# Parameters of which only these values are possible, and what to do about other values.
_ONLY: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "gssencmode": (
        frozenset({"disable", "prefer"}),
        "connections are not encrypted by GSSAPI; encrypt them by TLS, with sslmode=require",
    ),
    "client_encoding": (frozenset({"utf8", "utf-8", "unicode", "auto"}), "it is always UTF8"),
    "encoding": (frozenset({"utf8", "utf-8", "unicode"}), "it is always UTF8"),
    "replication": (frozenset({"false", "off", "no", "0"}), "leave it out"),
    "sslcertmode": (frozenset({"allow"}), "leave it out; sslcert and sslkey name a certificate"),
}
# Parameters that ask for something impossible, and what to write instead.
_REFUSED_PARAMETERS: Final[Mapping[str, str]] = {
    "hostaddr": "write the address as the host",
    "servicefile": "name the file in the environment, as PGSERVICEFILE",
    "require_auth": "leave it out; sslmode=verify-full makes sure of the server",
    "requirepeer": "leave it out",
    "sslcrldir": "name one file with sslcrl",
    "sslkeylogfile": "name the file in the environment, as SSLKEYLOGFILE",
    "scram_client_key": "use a password",
    "scram_server_key": "use a password",
    "sslaccept": "write sslmode=verify-full, or sslmode=require not to check the certificate",
    **dict.fromkeys(
        ("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
        "use a password or a client certificate",
    ),
}
_YES: Final = frozenset({"true", "1", "yes", "on"})
_NO: Final = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class Keepalives:
    """When a quiet connection is probed, and when it is lost; 0 is the system's default.

    `idle` and `interval` are in seconds.
    """

    idle: int = KEEPALIVE_IDLE
    interval: int = KEEPALIVE_INTERVAL
    count: int = KEEPALIVE_COUNT
    unacked_ms: int = DATABASE_UNACKED_MS
    on: bool = True


@dataclass(frozen=True, slots=True)
class Address:
    """The hosts of a database, and how to connect to them.

    `urls` are for asyncpg, one for each host, in the order of the URL. `roles` are the allowed
    roles of a session: None for any, False if it must write, True if it must be read-only. `tls`
    replaces the TLS parameters of the URLs. `pooled`: the URL says that there is a pooler. `notes`
    are for the log.
    """

    urls: tuple[str, ...]
    roles: tuple[bool | None, ...] = (None,)
    application: str = APPLICATION
    options: str | None = None
    connect_seconds: float = HOST_CONNECT_SECONDS
    keepalives: Keepalives = Keepalives()
    tls: ssl.SSLContext | None = None
    pooled: bool = False
    notes: tuple[str, ...] = ()


def read_address(url: str) -> Address:
    """Read a URL. Raises BadDatabase, naming the parameter and the fix."""
    try:
        parts = split_url(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        _ = parts.port if "," not in parts.netloc else None
    except ValueError:  # its text may contain a part of the password
        raise BadDatabase(
            "the URL cannot be read; is it postgresql://user:password@host:port/database, with "
            "signs such as / and @ in a name or password written as %2F and %40?"
        ) from None
    return _ParameterReader(dict(query)).address(parts)


class _ParameterReader:
    """Reads the parameters of one URL, each once."""

    def __init__(self, given: dict[str, str]) -> None:
        self._left = given
        self._notes: list[str] = []

    def address(self, parts: SplitResult) -> Address:
        passed = {name: self._left.pop(name) for name in _PASSED & self._left.keys()}
        tls = self._tls(passed)
        keepalives = Keepalives(
            on=self._flag("keepalives", default=True),
            idle=self._number("keepalives_idle", KEEPALIVE_IDLE),
            interval=self._number("keepalives_interval", KEEPALIVE_INTERVAL),
            count=self._number("keepalives_count", KEEPALIVE_COUNT),
            unacked_ms=self._number("tcp_user_timeout", DATABASE_UNACKED_MS),
        )
        connect = self._number("connect_timeout", 0) or HOST_CONNECT_SECONDS
        fallback = self._left.pop("fallback_application_name", "")
        urls = tuple(_each_host(parts, passed))
        # If there are several hosts, only one accepts writes, and a node needs that one.
        role = self._choice("target_session_attrs", _ROLES, "read-write" if urls[1:] else "any")
        options = self._left.pop("options", None)
        application = self._left.pop("application_name", "") or fallback or APPLICATION
        pooled = self._flag("pgbouncer", default=False)
        self._check_the_rest()
        return Address(
            urls=urls,
            roles=_ROLES[role],
            application=application,
            options=options,
            connect_seconds=min(connect, MAX_CONNECT_SECONDS),
            keepalives=keepalives,
            tls=tls,
            pooled=pooled,
            notes=tuple(self._notes),
        )

    def _tls(self, passed: dict[str, str]) -> ssl.SSLContext | None:
        """Put the parameters of TLS into `passed`; return a context if asyncpg needs one."""
        if (value := self._left.pop("ssl", None)) is not None and "sslmode" not in passed:
            passed["sslmode"] = "require" if value in _YES else "disable" if value in _NO else value
        mode = passed.get("sslmode", os.environ.get("PGSSLMODE", "prefer"))
        if mode not in _TLS_MODES:
            raise _bad("sslmode", f"must be one of {', '.join(_TLS_MODES)}")
        for name in sorted(_FILES & passed.keys()):
            if passed[name] != "system" and not os.access(passed[name], os.R_OK):
                raise _bad(name, f"the file {passed[name]} cannot be read")
        binding = self._choice("channel_binding", ("disable", "prefer", "require"), "prefer")
        if binding == "require":
            self._notes.append(
                "channel_binding=require: this client makes sure of the server by its certificate "
                "instead, as with sslmode=verify-full&sslrootcert=system"
            )
            mode = passed["sslmode"] = "verify-full"
            passed.setdefault("sslrootcert", "system")
        if passed.get("sslrootcert") != "system":
            return None
        if mode not in ("require", "verify-ca", "verify-full"):
            raise _bad("sslrootcert", "system needs sslmode=verify-full, too")
        del passed["sslrootcert"]
        passed.pop("sslmode", None)
        context = ssl.create_default_context()
        context.set_alpn_protocols(["postgresql"])
        if "sslcrl" in passed:
            context.load_verify_locations(passed.pop("sslcrl"))
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
        if "sslcert" in passed:
            password = passed.pop("sslpassword", "")
            context.load_cert_chain(
                passed.pop("sslcert"), passed.pop("sslkey", None), lambda: password
            )
        return context

    def _check_the_rest(self) -> None:
        for name, value in self._left.items():
            if name in _ONLY:
                values, fix = _ONLY[name]
                if value.lower() not in values:
                    raise _bad(name, f"{value!r} cannot be done: {fix}")
            elif name in _IGNORED:
                self._notes.append(f"{name} is ignored: {_IGNORED[name]}")
            elif name in _REFUSED_PARAMETERS:
                raise _bad(name, f"cannot be done: {_REFUSED_PARAMETERS[name]}")
            else:
                raise _bad(name, f"is not known{_guess(name)}")

    def _number(self, name: str, default: int) -> int:
        text = self._left.pop(name, "")
        if not text:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) < 9):
            raise _bad(name, "must be a whole number")
        return int(text)

    def _flag(self, name: str, *, default: bool) -> bool:
        text = self._left.pop(name, "").lower()
        if text and text not in _YES | _NO:
            raise _bad(name, "must be true or false")
        return text in _YES if text else default

    def _choice(self, name: str, of: Iterable[str], default: str) -> str:
        value = self._left.pop(name, default)
        if value not in of:
            raise _bad(name, f"must be one of {', '.join(of)}")
        return value


def _bad(name: str, rule: str) -> BadDatabase:
    return BadDatabase(f"the URL's parameter {name}: {rule}")


def _guess(name: str) -> str:
    known = {*_PASSED, *_IGNORED, *_ONLY, *_REFUSED_PARAMETERS}
    known |= {"application_name", "connect_timeout", "options", "target_session_attrs", "pgbouncer"}
    known |= {"channel_binding", "keepalives", "keepalives_idle", "tcp_user_timeout"}
    if close := difflib.get_close_matches(name.lower(), known, 1, 0.8):
        return f"; is it {close[0]}?"
    return f"; a setting of the server is written as options=-c%20{name}%3DVALUE"


def _each_host(parts: SplitResult, passed: Mapping[str, str]) -> Iterable[str]:
    """Yield a URL for each host: each has its own timeout, so that a silent one delays no other."""
    login, at, netloc = parts.netloc.rpartition("@")
    hosts = (netloc or passed.get("host", "")).split(",")
    ports = passed.get("port", "").split(",")
    if len(ports) not in (1, len(hosts)):
        raise _bad("port", f"there are {len(ports)} ports for {len(hosts)} hosts")
    in_netloc: Callable[[str], str] = (lambda host: host) if netloc else (lambda _: "")
    for number, host in enumerate(hosts):
        query = dict(passed)
        if "host" in passed:
            query["host"] = host
        if "port" in passed:
            query["port"] = ports[number if ports[1:] else 0]
        authority = f"{login}{at}{in_netloc(host)}"
        yield parts._replace(netloc=authority, query=urlencode(query), fragment="").geturl()
