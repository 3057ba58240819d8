"""Failures: errors of PostgreSQL and of connections to it, and what people can do about them."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from routecast.errors import BadDatabase, RoutecastError, Unavailable

# All errors of the server and of connections to it.
LOST: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a session that was lost at an unusual moment
    OSError,
    TimeoutError,
)

# Errors of the server's own files. An index can be rebuilt; a table cannot.
CORRUPT: Final = (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError)

# After these a session is useless, for example because its server is not the primary any more.
_USELESS: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
)

# Permanent errors, by the first characters of their code, and what to do about them.
_PERMANENT: Final[dict[str, str]] = {
    "42501": "grant this user CREATE on the database, or all rights on the schema routecast",
    "28": "check user and password in the URL, and the server's pg_hba.conf",
    "3D": "make it first, as with createdb",
}
# In an answer to a request to connect, errors with these codes are permanent, too: a wrong
# parameter, or a syntax or feature that the server does not know.
_REFUSED_CODES: Final = ("22", "42", "0A")
_ASKED: Final = "the server does not take what this program, or `options` in the URL, asks for"
# Errors of PgBouncer have the code of a broken protocol, or asyncpg gives them that of a lost
# connection. Both begin with this.
_POOLER: Final = "08"
_POOLER_PERMANENT: Final[dict[str, str]] = {
    "startup parameter": "PgBouncer does not take it: leave it out of the URL, or name it in "
    "PgBouncer's ignore_startup_parameters",
    "no such database": "PgBouncer does not know it: add it to its [databases]",
    "no such user": "PgBouncer does not know it: check the user in the URL and PgBouncer's users",
    "statement pooling": "set PgBouncer's pool_mode to transaction or session",
    "SSL required": "write sslmode=require in the URL",
    "auth": "check user and password in the URL, and PgBouncer's users",
}
_NO_TLS: Final = "rejected SSL upgrade"


class Unsuitable(Exception):
    """A server, or a program in front of it, lacks something that the store depends on."""


@contextmanager
def unavailable() -> Iterator[None]:
    """Raise Unavailable for all errors of the server and the connection."""
    try:
        yield
    except TimeoutError as error:
        raise Unavailable("PostgreSQL did not answer in time") from error
    except (*LOST, Unsuitable) as error:
        raise Unavailable(f"PostgreSQL: {described(error)}") from error


@contextmanager
def refusing() -> Iterator[None]:
    """Raise BadDatabase for permanent errors, with what to do about them."""
    try:
        yield
    except (*LOST, Unsuitable) as error:
        fix = fix_of(error)
        if fix is None and _code(error).startswith(_REFUSED_CODES):
            fix = _ASKED
        if fix is None:
            raise
        raise BadDatabase(f"{_line(error)}: {fix}") from error


def described(error: BaseException) -> str:
    """Return an error in one line, with what to do about it if that is known."""
    fix = fix_of(error)
    return _line(error) if fix is None else f"{_line(error)}: {fix}"


def _code(error: BaseException) -> str:
    return (error.sqlstate or "") if isinstance(error, asyncpg.PostgresError) else ""


def _line(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted ({error.verify_message})"
    return str(error).partition("\n")[0] or type(error).__name__


def fix_of(error: BaseException) -> str | None:
    """Return what people must do about an error; None if a later try may succeed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            "name its authority's certificate with sslrootcert=FILE in the URL, and the server as "
            "its certificate does"
        )
    if isinstance(error, ConnectionError) and _NO_TLS in str(error):
        return (
            "the URL asks for TLS, and the server has none; set ssl = on there, or write "
            "sslmode=prefer in the URL if the network is trusted"
        )
    if isinstance(error, Unsuitable):
        return "connect to the server itself, or to a pooler that lets them be set"
    code = _code(error)
    if code.startswith(_POOLER):
        text = str(error)
        return next((fix for part, fix in _POOLER_PERMANENT.items() if part in text), None)
    return next((fix for start, fix in _PERMANENT.items() if code.startswith(start)), None)


def usable_after(error: BaseException) -> bool:
    """Whether a session still works after an error: of a statement, or of our own code."""
    if isinstance(error, _USELESS):
        return False
    return isinstance(error, asyncpg.PostgresError | RoutecastError)
