"""`routecast token revoke`, `revocations` and `allow`: tokens that are refused though valid."""

from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from routecast.adapters.clock import SystemClock
from routecast.cli.database import DatabaseOption, run_on_database
from routecast.cli.moments import future_moment, in_minutes, past_moment, written
from routecast.cli.terminal import BAD_USAGE, fail
from routecast.core.keys import (
    DecideChange,
    Revocation,
    RevocationId,
    RevocationKind,
    add_revocation,
    check_subject,
    check_token_id,
    drop_revocation,
)
from routecast.core.texts import shown
from routecast.errors import BadChange
from routecast.ports import Database
from routecast.server.config import load_settings

_Jti = Annotated[str | None, typer.Option(help="The token with this id (`jti`).")]
_Subject = Annotated[str | None, typer.Option(help="The tokens of this subject (`sub`).")]


def revoke(
    jti: _Jti = None,
    subject: _Subject = None,
    issued_before: Annotated[
        str | None,
        typer.Option(
            help="Tokens issued before now, before 12h or 30d ago, or before "
            "2026-01-31T12:00:00Z: those of --subject, or all."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="Accept them again after 12h or 30d, or at 2027-01-31T12:00:00Z.",
            show_default="never",
        ),
    ] = None,
    database: DatabaseOption = None,
) -> None:
    """Revoke tokens: within two seconds no server accepts them, and their streams are closed.

    With --subject alone, all tokens of the subject are refused, also those
    that are issued later. With --issued-before too, newer ones are accepted.

    Examples: routecast token revoke --jti 4f1c0a
    routecast token revoke --subject ana --issued-before now
    """
    if jti is not None and (subject is not None or issued_before is not None):
        fail("--jti names one token: give no --subject or --issued-before with it", BAD_USAGE)
    now = SystemClock().now()
    before = None if issued_before is None else past_moment("issued-before", issued_before, now)
    ends = None if until is None else future_moment("until", until, now)
    about = _about(jti, subject, everyone=issued_before is not None)
    revocation = Revocation(about, before, now, ends)
    _change(database, lambda records: add_revocation(records, revocation))
    typer.echo(f"{_described(revocation)}: revoked.")


def list_revocations(
    database: DatabaseOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List which tokens are revoked."""
    url = load_settings(database_url=database).database_url
    records = run_on_database(url, lambda store: store.access())
    found = sorted(records.revocations.values(), key=lambda one: (one.created, one.about))
    if json:
        document = {"revocations": list(map(_document, found))}
        typer.echo(shown(msgspec.json.encode(document).decode()))
        return
    now = SystemClock().now()
    table = Table(box=None, pad_edge=False)
    for column in ("Tokens", "Revoked", "Until"):
        table.add_column(column, overflow="fold", no_wrap=column == "Revoked")
    for one in found:
        is_over = one.until is not None and one.until <= now
        until = in_minutes(one.until, "removed") + (" (over)" if is_over else "")
        table.add_row(Text(_described(one)), in_minutes(one.created), until)
    Console(highlight=False).print(table)


def allow(
    jti: _Jti = None,
    subject: _Subject = None,
    everyone: Annotated[
        bool, typer.Option("--everyone", help="All tokens issued before a moment.")
    ] = False,
    database: DatabaseOption = None,
) -> None:
    """Remove a revocation: servers accept these tokens again until they expire."""
    if (jti is not None) + (subject is not None) + everyone > 1:
        fail("give one of --jti, --subject and --everyone", BAD_USAGE)
    about = _about(jti, subject, everyone=everyone)
    _change(database, lambda records: drop_revocation(records, about))
    typer.echo(f"{_tokens(about)}: no longer revoked.")


def _about(jti: str | None, subject: str | None, *, everyone: bool) -> RevocationId:
    """Return which tokens the options name; exit if they name none."""
    try:
        if jti is not None:
            check_token_id(jti)
            return RevocationId(RevocationKind.JTI, jti)
        if subject is not None:
            check_subject("subject", subject)
            return RevocationId(RevocationKind.SUBJECT, subject)
    except BadChange as error:
        fail(error, BAD_USAGE)
    if not everyone:
        fail("say which tokens: see --help", BAD_USAGE)
    return RevocationId(RevocationKind.ISSUED_BEFORE, "")


def _change(url: str | None, decide: DecideChange) -> None:
    async def change(store: Database) -> None:
        await store.change_access(decide)

    try:
        run_on_database(load_settings(database_url=url).database_url, change, create=True)
    except BadChange as error:
        fail(error, BAD_USAGE)


def _tokens(about: RevocationId) -> str:
    if about.kind is RevocationKind.JTI:
        return f"The token {shown(about.value)}"
    if about.kind is RevocationKind.SUBJECT:
        return f"Tokens of {shown(about.value)}"
    return "All tokens"


def _described(one: Revocation) -> str:
    if one.issued_before is None:
        return _tokens(one.about)
    return f"{_tokens(one.about)} issued before {written(one.issued_before)}"


def _document(one: Revocation) -> dict[str, Any]:
    kind = one.about.kind
    return {
        "jti": one.about.value if kind is RevocationKind.JTI else None,
        "subject": one.about.value if kind is RevocationKind.SUBJECT else None,
        "issued_before": written(one.issued_before),
        "revoked": written(one.created),
        "until": written(one.until),
    }
