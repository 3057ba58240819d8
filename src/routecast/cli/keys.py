"""`routecast keys`: create, list, rotate, revoke and delete API keys."""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from routecast.adapters.clock import SystemClock
from routecast.cli.database import DatabaseOption, run_on_database
from routecast.cli.moments import future_moment, in_minutes, span_of, written
from routecast.cli.terminal import BAD_USAGE, FAILED, fail, say
from routecast.cli.token import scopes_of
from routecast.core.access import ALL_PROJECTS
from routecast.core.claims import LAST_SECOND
from routecast.core.keys import (
    KEY_ALPHABET,
    KEY_ID_LENGTH,
    KEY_SECRET_LENGTH,
    AccessChange,
    AccessRecords,
    ApiKey,
    DecideChange,
    KeyState,
    add_key,
    check_subject,
    delete_keys,
    digest_of,
    key_id_in,
    key_text,
    projects_of,
    revoke_key,
    rotate_key,
)
from routecast.core.texts import shown, spelling
from routecast.core.times import SECOND
from routecast.errors import BadChange
from routecast.ports import Database
from routecast.server.config import load_settings

_KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The id or the name of a key.")]
_KeyArguments = Annotated[
    list[str], typer.Argument(metavar="KEY...", help="The id or the name of each key.")
]
_Expires = Annotated[
    str | None,
    typer.Option(help="When it ends: after 12h or 90d, or at 2027-01-31T12:00:00Z."),
]


def create(
    name: Annotated[str, typer.Option(help="Who has it, such as search-router.")],
    scope: Annotated[
        list[str], typer.Option(help="read, decisions, write or admin; may be repeated.")
    ],
    project: Annotated[
        list[str] | None,
        typer.Option(help="A project it is for; may be repeated.", show_default="all projects"),
    ] = None,
    expires: _Expires = None,
    database: DatabaseOption = None,
) -> None:
    """Create a key, and print it.

    It is printed once, on standard output: only its hash is stored. Running
    servers accept it after at most two seconds. With the first key,
    authentication is on: clients without a key or token are refused.

    Example: routecast keys create --name search --scope write --project search
    """
    now = _now()
    ends = None if expires is None else future_moment("expires", expires, now)
    scopes = frozenset(scopes_of(scope))
    identity, secret = _random()
    text = key_text(identity, secret)
    with _refusals():
        check_subject("name", name)
        projects = projects_of(project or ())
    key = ApiKey(identity, spelling(name), digest_of(text), scopes, projects, now, ends)
    before = _change(database, lambda records: add_key(records, key), create=True)
    _print(key, text)
    if not before.keys:
        _tell("It is the first key: from now on, authentication is on.")


def list_keys(
    database: DatabaseOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List keys: what each allows, when it was last used, and whether it is accepted."""
    records = _read(database)
    now, keys = _now(), _in_order(records.keys.values())
    if json:
        document = {"keys": [_document(key, now) for key in keys]}
        typer.echo(shown(msgspec.json.encode(document).decode()))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("Id", "Name", "Scopes", "Projects", "Created", "Expires", "Last use", "State"):
        table.add_column(column, overflow="fold", no_wrap=column in ("Id", "State"))
    for key in keys:
        table.add_row(
            key.id,
            Text(shown(key.name)),
            " ".join(sorted(key.scopes)),
            Text(", ".join(map(shown, _projects(key)))),
            in_minutes(key.created),
            in_minutes(key.expires, "never"),
            in_minutes(key.last_used, "never"),
            str(key.state(now)),
        )
    Console(highlight=False).print(table)


def revoke(keys: _KeyArguments, database: DatabaseOption = None) -> None:
    """Revoke keys: within two seconds no server accepts them, and their streams are closed.

    This cannot be undone. A key stays in the list until it is deleted.
    """
    now, revoked = _now(), list[ApiKey]()

    def decide(records: AccessRecords) -> AccessChange:
        revoked[:] = [_chosen(records, key, now) for key in keys]
        changes = [revoke_key(records, key.id, now) for key in revoked]
        return AccessChange(put_keys=[key for change in changes for key in change.put_keys])

    _change(database, decide)
    for key in revoked:
        typer.echo(f"{key.id} ({shown(key.name)}) is revoked.")


def rotate(
    key: _KeyArgument,
    overlap: Annotated[
        str, typer.Option(help="How long the old key is accepted beside the new one.")
    ] = "24h",
    expires: _Expires = None,
    database: DatabaseOption = None,
) -> None:
    """Replace a key by a new one with its name, scopes and projects.

    The old key is accepted for the time of --overlap. The new key is printed
    once, on standard output. It ends when --expires says; without that it lasts
    as long as the old one did.

    Example: routecast keys rotate search --overlap 24h
    """
    now, beside = _now(), span_of("overlap", overlap)
    ends = None if expires is None else future_moment("expires", expires, now)
    identity, secret = _random()
    made: list[ApiKey] = []

    def decide(records: AccessRecords) -> AccessChange:
        old = _chosen(records, key, now)
        lasts = ends
        if lasts is None and old.expires is not None:
            lasts = min(now + old.expires - old.created, LAST_SECOND * SECOND)
        digest = digest_of(key_text(identity, secret))
        new = ApiKey(identity, old.name, digest, old.scopes, old.projects, now, lasts)
        change = rotate_key(records, new, old.id, beside)
        made[:] = change.put_keys
        return change

    _change(database, decide)
    new, old = made
    _print(new, key_text(identity, secret))
    _tell(f"The old key {old.id} is accepted until {written(old.expires)}.")


def delete(
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY...]", help="The id or the name of each key."),
    ] = None,
    ended: Annotated[
        bool, typer.Option("--ended", help="All keys that are revoked or have expired.")
    ] = False,
    database: DatabaseOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete revoked or expired keys from the list.

    When no key is left, and no setting names a key for tokens, authentication
    is off.
    """
    if bool(keys) == ended:
        fail("name the keys to delete, or give --ended", BAD_USAGE)
    now = _now()
    records = _read(database)
    with _refusals():
        chosen = [_chosen(records, key, now).id for key in keys or ()]
        if ended:
            held = records.keys.values()
            chosen = [key.id for key in held if key.state(now) is not KeyState.ACTIVE]
        delete_keys(records, chosen, now)
    if records.keys and set(chosen) == set(records.keys) and not yes:
        _confirm("No key will be left, so authentication by keys will be off. Delete them?")
    _change(database, lambda records: delete_keys(records, chosen, now))
    typer.echo(f"{len(chosen):,} keys are deleted.")


def _confirm(question: str) -> None:
    try:
        confirmed = typer.confirm(question)
    except typer.Abort:
        fail("no answer, so nothing was changed; --yes does it without asking", BAD_USAGE)
    if not confirmed:
        raise typer.Exit(FAILED)


@contextmanager
def _refusals() -> Iterator[None]:
    """End the command with an error if a rule is broken in the body."""
    try:
        yield
    except BadChange as error:
        fail(error, BAD_USAGE)


def _read(url: str | None) -> AccessRecords:
    database = load_settings(database_url=url).database_url
    return run_on_database(database, lambda store: store.access())


def _change(url: str | None, decide: DecideChange, *, create: bool = False) -> AccessRecords:
    """Change keys; return what was stored before. Exits with an error if a rule is broken."""
    before: list[AccessRecords] = []

    def remember(records: AccessRecords) -> AccessChange:
        before[:] = [records]
        return decide(records)

    async def change(store: Database) -> None:
        await store.change_access(remember)

    with _refusals():
        database = load_settings(database_url=url).database_url
        run_on_database(database, change, create=create)
    return before[0]


def _now() -> int:
    return SystemClock().now()


def _random() -> tuple[str, str]:
    """Return the id and the secret of a new key."""

    def letters(count: int) -> str:
        return "".join(secrets.choice(KEY_ALPHABET) for _ in range(count))

    return letters(KEY_ID_LENGTH), letters(KEY_SECRET_LENGTH)


def _chosen(records: AccessRecords, given: str, now: int) -> ApiKey:
    """Return the key with an id or a name. Raises BadChange if there is none, or several."""
    identity = key_id_in(given)
    by_id = [key for key in records.keys.values() if key.id == identity]
    named = [key for key in records.keys.values() if key.name == spelling(given)]
    active = [key for key in named if key.state(now) is KeyState.ACTIVE]
    found = [*by_id, *(key for key in active or named if key not in by_id)]
    if not found:  # it may be a key of another database, which is not shown
        raise BadChange(f"there is no key {shown(identity or given)}; see `routecast keys list`")
    if len(found) > 1:
        ids = ", ".join(key.id for key in found)
        raise BadChange(f"{shown(given)}: {len(found)} keys have this name; give an id: {ids}")
    return found[0]


def _print(key: ApiKey, text: str) -> None:
    """Print a new key: its text alone on standard output, all else on standard error."""
    ends = f"it ends at {written(key.expires)}" if key.expires else "it does not end"
    _tell(
        f"Key {key.id} of {shown(key.name)}: scopes {' '.join(sorted(key.scopes))}, projects "
        f"{', '.join(map(shown, _projects(key)))}; {ends}. It is shown only once:"
    )
    typer.echo(text)


def _tell(message: str) -> None:
    say(Console(stderr=True), message)


def _projects(key: ApiKey) -> list[str]:
    return [ALL_PROJECTS] if key.projects is None else sorted(key.projects)


def _in_order(keys: Iterable[ApiKey]) -> list[ApiKey]:
    return sorted(keys, key=lambda key: (key.created, key.id))


def _document(key: ApiKey, now: int) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "projects": _projects(key),
        "created": written(key.created),
        "expires": written(key.expires),
        "revoked": written(key.revoked),
        "last_used": written(key.last_used),
        "state": str(key.state(now)),
    }
