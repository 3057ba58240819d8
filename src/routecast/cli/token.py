"""`routecast token`: make tokens without an identity provider."""

import secrets
from typing import Annotated, Final

import msgspec
import typer

from routecast.cli.moments import span_of
from routecast.cli.terminal import BAD_USAGE, fail
from routecast.core.access import ALL_PROJECTS, Scope
from routecast.core.claims import MAX_TOKEN, ClaimRules
from routecast.core.times import SECOND
from routecast.errors import BadCredential, BadSettings
from routecast.server.config import load_settings

# Random bytes of a token's id, by which it can be revoked alone.
_ID_BYTES: Final = 12


def create(
    subject: Annotated[
        str, typer.Option(help="Whose token it is: a person or a program.", show_default=False)
    ],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read, decisions, write or admin; may be repeated.", show_default="read"),
    ] = None,
    project: Annotated[
        list[str] | None,
        typer.Option(help="A project it is for; may be repeated.", show_default="all projects"),
    ] = None,
    lifetime: Annotated[
        str, typer.Option(help="How long it is valid: 90s, 15m, 12h or 30d.")
    ] = "1h",
    key: Annotated[
        str | None,
        typer.Option(
            help="A file with the private key (PEM) to sign it with.",
            show_default="ROUTECAST_JWT_SECRET",
        ),
    ] = None,
) -> None:
    """Print a token.

    It is signed with ROUTECAST_JWT_SECRET, or with a private key whose public
    key is the ROUTECAST_JWT_PUBLIC_KEY of the servers. It has the audience and
    the issuer that ROUTECAST_JWT_AUDIENCE and ROUTECAST_JWT_ISSUER name.

    Example: routecast token create --subject grafana --scope read --lifetime 30d
    """
    # Imported here, because they take longer than all else that this command does.
    from routecast.adapters.clock import SystemClock
    from routecast.adapters.jwt_keys import private_key, secret_key, sign

    settings = load_settings()
    if key is not None:
        signing_key = private_key(key)
    elif settings.jwt_secret is not None:
        signing_key = secret_key(settings.jwt_secret.get_secret_value())
    else:
        raise BadSettings("there is nothing to sign with: set ROUTECAST_JWT_SECRET, or give --key")
    now = SystemClock().now() // SECOND
    claims: dict[str, object] = {
        "sub": subject,
        "scope": " ".join(scopes_of(scope or [Scope.READ])),
        "projects": project or [ALL_PROJECTS],
        "iat": now,
        "exp": now + span_of("lifetime", lifetime) // SECOND,
        "jti": secrets.token_urlsafe(_ID_BYTES),
    }
    if settings.jwt_issuer is not None:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience is not None:
        claims["aud"] = settings.jwt_audience
    _check(claims, now)
    token = sign(claims, signing_key)
    if len(token) > MAX_TOKEN:
        fail(f"the token would be over {MAX_TOKEN:,} characters: name fewer projects", BAD_USAGE)
    typer.echo(token)


def _check(claims: dict[str, object], now: int) -> None:
    """Exit if servers would refuse a token with these claims."""
    try:
        ClaimRules().read(msgspec.json.encode(claims), now)
    except BadCredential as error:
        fail(error, BAD_USAGE)
    except UnicodeEncodeError:
        fail("subject and projects must be valid UTF-8", BAD_USAGE)


def scopes_of(given: list[str]) -> list[Scope]:
    """Return the scopes that were given, some in one text; exit if one is unknown."""
    names = [name for text in given for name in text.split()]
    for name in names:
        if name not in set(Scope):
            fail(f"scope: {name!r} is not one of {', '.join(Scope)}", BAD_USAGE)
    return [scope for scope in Scope if scope in names]
