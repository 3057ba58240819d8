"""The settings, read from options and the environment. `docs/settings.md` lists them all.

No other module reads variables that begin with `ROUTECAST_`.
"""

import logging
import os
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from routecast.core.client_limits import ALL_LIMITS, ClientLimit
from routecast.core.group_rules import parse_group_rules
from routecast.core.sites import host_entry, origin_entry
from routecast.edge.proxies import read_network
from routecast.errors import BadSettings
from routecast.ports import MIN_MINUTE_DAYS
from routecast.protocol import DEFAULT_INTERVAL, MAX_INTERVAL, MAX_MESSAGES_A_MINUTE, MIN_INTERVAL
from routecast.urls import masked

log = logging.getLogger("routecast")

# A site in the directive `frame-ancestors` of a policy (CSP 3, 6.4.2).
_ANCESTOR = re.compile(
    r"'(?:self|none)'|https?://(?:\*\.)?[\w.-]+(?::(?:[0-9]{1,5}|\*))?", re.ASCII
)
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Settings(BaseSettings):
    """All settings. Each variable is `ROUTECAST_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="ROUTECAST_", extra="ignore", frozen=True)

    # -- listening --------------------------------------------------------------------------------

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    fd: int | None = Field(
        None,
        ge=0,
        description="Listen on this file descriptor, a TCP socket that is bound to an address, "
        "instead of a port.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Worker processes that share the port; more than 1 requires PostgreSQL "
        "and Redis.",
    )
    insecure: bool = Field(
        False,
        description="Accept connections from other machines without authentication, and "
        "credentials over plain HTTP.",
    )
    allowed_origins: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="Comma-separated sites whose pages may listen, read and send, such as "
        "https://grafana.example or https://*.example.com; * allows all. Pages opened by localhost "
        "or an IP address are always allowed. A page opened by a name, for example behind a proxy, "
        "must be listed.",
    )
    allowed_hosts: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="Comma-separated names of this server, such as routecast.example or "
        "*.svc.cluster.local; * allows all. Requests with another `Host` are refused. IP "
        "addresses, names without a dot, names that end in .localhost, and the hosts of allowed "
        "origins need not be listed.",
    )
    frame_ancestors: str = Field(
        "'self'",
        description="Sites whose pages may show this server's pages in a frame, separated by "
        "spaces: 'self', 'none', or such as https://portal.example.",
    )
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Comma-separated addresses and networks of proxies whose `X-Forwarded-For` and "
        "`X-Forwarded-Proto` are used, such as 10.0.0.0/8; * trusts every address.",
    )
    keep_alive: float = Field(
        75,
        ge=1,
        le=3600,
        description="Seconds an idle HTTP connection is kept. Use more than your proxies do, or a "
        "proxy may send a request on a connection that is just being closed.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Log level: debug, info, warning or error."
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        description="Form of the log: `text`, or `json`, which has one object per line and the "
        "audit log.",
    )

    # -- authentication ---------------------------------------------------------------------------

    jwt_secret: SecretStr | None = Field(
        None,
        description="Secret of at least 32 bytes that tokens are signed with by HS256. Its holders "
        "can make tokens.",
    )
    jwt_public_key: str | None = Field(
        None,
        description="Public key that tokens are verified with, as PEM or the path of a PEM file: "
        "RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA).",
    )
    jwks_url: str | None = Field(
        None,
        description="Where an identity provider publishes its keys as a JWK set, such as "
        "https://login.example/.well-known/jwks.json.",
    )
    jwt_audience: str | None = Field(
        None, min_length=1, description="Only tokens with this audience (`aud`) are accepted."
    )
    jwt_issuer: str | None = Field(
        None, min_length=1, description="Only tokens of this issuer (`iss`) are accepted."
    )

    oidc_issuer: str | None = Field(
        None,
        min_length=1,
        description="OpenID Connect provider by which people sign in on the page, such as "
        "https://login.example. It must know the address `/auth/callback` of this server.",
    )
    oidc_client_id: str = Field("", description="Name of this server at the provider.")
    oidc_client_secret: SecretStr | None = Field(
        None,
        description="Secret of this server at the provider; without one it is a public client.",
    )
    oidc_scopes: str = Field(
        "openid email",
        pattern=r"^(.* )?openid( .*)?$",
        description="Scopes that are asked for at the provider; `groups` is often one.",
    )
    oidc_subject_claim: str = Field(
        "sub",
        min_length=1,
        description="Claim that names a person here. Another person must never be able to choose "
        "the same value.",
    )
    oidc_groups_claim: str = Field(
        "groups", min_length=1, description="Claim with the groups of a person."
    )
    auth_header: str = Field(
        "",
        pattern=r"^[A-Za-z0-9-]*$",
        description="Field in which a trusted proxy names a person after signing in, such as "
        "X-Forwarded-User of oauth2-proxy. The proxy must remove it from what clients send.",
    )
    auth_groups_header: str = Field(
        "",
        pattern=r"^[A-Za-z0-9-]*$",
        description="Field with the groups of that person, separated by commas, such as "
        "X-Forwarded-Groups.",
    )
    cloudflare_team: str | None = Field(
        None,
        description="Address of your team at Cloudflare Access, such as "
        "https://corp.cloudflareaccess.com, whose signed field `Cf-Access-Jwt-Assertion` names "
        "people by their email.",
    )
    cloudflare_audience: str = Field(
        "", description="Audience tag (AUD) of the application at Cloudflare Access."
    )
    group_rules: str | None = Field(
        None,
        description="What people who are signed in by a provider or a proxy may do. The first rule "
        "about a group of the person counts, as in "
        "`admins=read,admin; search-team=read:search,ads; *=read:public`. * is the group of all "
        "people, and a rule without projects is for all projects.",
    )

    # -- storage ----------------------------------------------------------------------------------

    database_url: str = Field(
        "sqlite:///routecast.db",
        description="Where decisions are kept: sqlite:///relative.db, sqlite:////absolute.db or "
        "postgresql://user:password@host/database, which many nodes may share. The path of a file "
        "is taken as it is, with % ? and # in it.",
    )
    database_connections: int = Field(
        5, ge=2, le=100, description="Connections a node opens to PostgreSQL, at most."
    )

    # -- cluster ----------------------------------------------------------------------------------

    redis_url: str | None = Field(
        None,
        description="Cache and bus for many nodes: redis://host:6379/0, rediss:// (TLS), "
        "redis+sentinel://host,host/master/0, redis+cluster://host,host or unix:///path; "
        "Valkey works alike.",
    )
    redis_prefix: str = Field(
        "routecast",
        pattern=r"^[\w.:-]+$",
        description="Beginning of all keys in Redis; clusters that share a Redis need one each.",
    )
    role: Literal["all", "stream"] = Field(
        "all",
        description="What the node does: `all`, or only `stream`, which needs Redis and no "
        "database.",
    )
    cache_seconds: float = Field(
        30, ge=1, le=3600, description="Seconds a cached snapshot may be used."
    )

    # -- streams and the page ---------------------------------------------------------------------

    interval: float = Field(
        DEFAULT_INTERVAL,
        ge=MIN_INTERVAL,
        le=MAX_INTERVAL,
        description="Seconds between two frames of a stream that asks for no interval.",
    )
    compress: bool = Field(
        True, description="Compress large frames for clients that support permessage-deflate."
    )
    notice: str = Field("", description="A line shown on the page, such as the name of a trial.")

    # -- limits -----------------------------------------------------------------------------------

    max_connections: int = Field(
        10_000, ge=1, description="Streams open at a time; over it, new ones are refused with 503."
    )
    max_per_address: int = Field(
        0, ge=0, description="Streams open at a time from one address; 0 is no limit."
    )
    max_per_subject: int = Field(
        0,
        ge=0,
        description="Streams open at a time with credentials of one subject; 0 is no limit.",
    )
    max_connections_a_minute: int = Field(
        0, ge=0, description="Streams that one address may open in a minute; 0 is no limit."
    )
    max_messages_a_minute: int = Field(
        MAX_MESSAGES_A_MINUTE,
        ge=10,
        le=100_000,
        description="Messages that a `routecast.v1` connection may send in a minute.",
    )
    max_bytes_a_minute: int = Field(
        0,
        ge=0,
        description="Bytes of messages that a `routecast.v1` connection may send in a minute; 0 is "
        "no limit.",
    )
    max_frames_a_second: int = Field(
        0,
        ge=0,
        description="Frames a second that the streams of one subject may ask for together; 0 is no "
        "limit.",
    )
    max_decisions_a_minute: int = Field(
        0,
        ge=0,
        description="Decisions that one subject may send in a minute, to all nodes together; "
        "without authentication, one address. 0 is no limit.",
    )
    max_sessions_a_day: int = Field(
        1_000,
        ge=0,
        description="Sessions that one subject may begin in a day, on each node; 0 is no limit.",
    )
    max_tickets_a_minute: int = Field(
        2_000,
        ge=0,
        description="Tickets that one subject may make in a minute, on each node; without "
        "authentication, one address. 0 is no limit.",
    )
    failed_sign_ins: int = Field(
        10,
        ge=0,
        description="Refused credentials of one address, and refusals of one credential, before "
        "such refusals are answered slowly; 0 is never.",
    )
    dry_run: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="Comma-separated limits per client that are counted and not enforced, such as "
        "ingest,connection_rate; all for all of them.",
    )
    max_names: int = Field(
        500,
        ge=1,
        description="Distinct projects, strategies, providers and models, of each; "
        "more are counted as `other`.",
    )
    max_series: int = Field(
        5_000,
        ge=1,
        description="Distinct combinations of those names; more are counted as `other`.",
    )
    max_series_per_project: int = Field(
        0,
        ge=0,
        description="Distinct combinations of names of one project; more are counted as `other`, "
        "so that no project uses the room of all. 0 is no limit of its own.",
    )
    live_memory: int = Field(
        128,
        ge=4,
        le=1_048_576,
        description="MiB of memory for live state. Windows that it has no room for are answered "
        "from the database, the longest ones first.",
    )

    # -- retention --------------------------------------------------------------------------------

    decision_days: float = Field(
        30, ge=1, description="Days a decision, and so its id, is kept after its receipt."
    )
    minute_days: float = Field(
        90,
        ge=MIN_MINUTE_DAYS,
        description="Days minute rollups are kept. Hours and totals are kept for ever.",
    )

    # -- confidence and prices --------------------------------------------------------------------

    band_high: float = Field(
        0.8, ge=0, le=1, description="Minimum confidence of the band `high`, for new decisions."
    )
    band_medium: float = Field(
        0.5, ge=0, le=1, description="Minimum confidence of the band `medium`, for new decisions."
    )
    prices: bool = Field(
        True, description="Price decisions that come without a cost, from model and tokens."
    )
    baseline_model: str | None = Field(
        None, description="The model that the field `savings` compares with, such as gpt-4o."
    )

    @field_validator("allowed_origins", "allowed_hosts", "dry_run", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return frozenset(entry.strip() for entry in value.split(",") if entry.strip())
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _read_origins(cls, value: frozenset[str]) -> frozenset[str]:
        return _read_entries(value, origin_entry)

    @field_validator("allowed_hosts")
    @classmethod
    def _read_hosts(cls, value: frozenset[str]) -> frozenset[str]:
        return _read_entries(value, host_entry)

    @field_validator("dry_run")
    @classmethod
    def _check_limits(cls, value: frozenset[str]) -> frozenset[str]:
        names = {*ClientLimit, ALL_LIMITS}
        if unknown := sorted(value - names):
            raise ValueError(
                f"{', '.join(map(repr, unknown))}: the limits are {', '.join(sorted(names))}"
            )
        return value

    @field_validator("group_rules")
    @classmethod
    def _check_group_rules(cls, value: str | None) -> str | None:
        if value is not None and not parse_group_rules(value):
            raise ValueError("has no rule in it")
        return value

    @field_validator("frame_ancestors")
    @classmethod
    def _check_ancestors(cls, value: str) -> str:
        entries = value.split()
        if not entries:
            raise ValueError("names no site: write 'none' to allow no frames")
        if "'none'" in entries and len(entries) > 1:
            raise ValueError("'none' must be the only entry")
        if wrong := [entry for entry in entries if not _ANCESTOR.fullmatch(entry)]:
            raise ValueError(
                f"{wrong[0]!r} is neither 'self' nor 'none' (with the quotes) nor the site of a "
                "page: write it as https://name or https://name:port"
            )
        return " ".join(entries)

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: str) -> str:
        for name in value.split(","):
            if name.strip() not in ("", "*"):
                read_network(name.strip())
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.band_medium > self.band_high:
            raise ValueError("band_medium must not be over band_high")
        if self.oidc_issuer is not None and not self.oidc_client_id:
            raise ValueError("oidc_issuer needs ROUTECAST_OIDC_CLIENT_ID")
        if self.cloudflare_team is not None and not self.cloudflare_audience:
            raise ValueError("cloudflare_team needs ROUTECAST_CLOUDFLARE_AUDIENCE")
        if self.auth_header and "*" in self.trusted_proxies:
            raise ValueError(
                "auth_header: with ROUTECAST_TRUSTED_PROXIES=* anyone could say who they are; "
                "list the addresses of the proxies"
            )
        if self.signs_in and self.group_rules is None:
            raise ValueError("people who sign in may do nothing without ROUTECAST_GROUP_RULES")
        if self.role == "stream" and not self.redis_url:
            raise ValueError(
                "role stream needs Redis, by which it hears of decisions: add --redis redis://HOST"
            )
        if self.workers > 1:
            missing = [
                *(["--redis redis://HOST"] if not self.redis_url else []),
                *(
                    ["--database postgresql://HOST/NAME"]
                    if self.role == "all" and self.database_url.startswith("sqlite")
                    else []
                ),
            ]
            if missing:
                raise ValueError(
                    "workers: several processes need engines they can share: add "
                    + " and ".join(missing)
                )
        return self

    @property
    def takes_tokens(self) -> bool:
        """Whether a setting names a key for tokens, which turns authentication on."""
        # An empty one counts, and is refused later: a variable that was meant to be set, and is
        # not, must not turn authentication off.
        keys = (self.jwt_secret, self.jwt_public_key, self.jwks_url)
        return any(key is not None for key in keys)

    def shown(self) -> dict[str, object]:
        """Return all settings for a log: secrets are hidden, and URLs have no user or password."""
        return {name: _shown(name, value) for name, value in self}

    @property
    def signs_in(self) -> bool:
        """Whether a provider or a proxy signs people in, which turns authentication on."""
        return (
            self.oidc_issuer is not None
            or bool(self.auth_header)
            or self.cloudflare_team is not None
        )

    def warn_if_insecure(self) -> None:
        """Log what --insecure allows, if it is given."""
        if self.insecure:
            log.warning(
                "--insecure: other machines may use this server without authentication if none is "
                "configured, and may send credentials over plain HTTP, where others can read them"
            )

    def require_safe(self) -> None:
        """Raise BadSettings if other machines could read and write without authentication.

        An inherited socket (`fd`) has an address of its own, which `take_over` checks.
        """
        if self.fd is None and self.host not in LOOPBACK:
            self.require_safe_at(f"host {self.host} can", "listen on")

    def require_safe_at(self, place: str, remedy: str) -> None:
        """Raise BadSettings if a place that other machines can reach needs authentication.

        API keys do not count: they are in the database, where the last one may be deleted while the
        server runs.
        """
        if not self.insecure and not self.takes_tokens and not self.signs_in:
            raise BadSettings(
                f"{place} be reached from other machines, and no authentication is configured: set "
                "ROUTECAST_JWT_SECRET, ROUTECAST_JWT_PUBLIC_KEY or ROUTECAST_JWKS_URL, also if all "
                f"clients have API keys; or {remedy} 127.0.0.1; or say --insecure if the network "
                "is trusted"
            )


def _shown(name: str, value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, str) and "://" in value:
        return masked(value)
    if isinstance(value, SecretStr) or (name.endswith("_key") and value is not None):
        return "***"  # a private key may have been set by mistake
    return value


def _read_entries(entries: frozenset[str], read: Callable[[str], str]) -> frozenset[str]:
    """Return all entries of a setting as `read` returns them. Raises ValueError, naming the bad."""
    good, bad = set(), []
    for entry in sorted(entries):
        try:
            good.add(read(entry))
        except ValueError as error:
            bad.append(f"{entry!r} {error}")
    if bad:
        raise ValueError("; ".join(bad))
    return frozenset(good)


# Settings with options of `routecast serve` that worker processes need as well.
_OPTIONS = frozenset(
    {
        *("host", "port", "database_url", "redis_url", "role", "interval", "log_level"),
        *("log_format", "insecure"),
    }
)


def environment(settings: Settings, **changed: str) -> dict[str, str]:
    """Return the environment for a child process with the same settings.

    It contains what options have set, because other users can read a password in a command line.
    """
    options = settings.model_dump(include=set(_OPTIONS), exclude_none=True)
    given = {name: str(value) for name, value in options.items()} | changed
    return {**os.environ, **{f"ROUTECAST_{name.upper()}": value for name, value in given.items()}}


def load_settings(**given: Any) -> Settings:
    """Return settings from arguments (None is not given), then from the environment.

    Raises BadSettings with one line for each wrong setting.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = []
        for wrong in error.errors():
            name = str(wrong["loc"][0]) if wrong["loc"] else ""
            label = f"{name} (ROUTECAST_{name.upper()}): " if name else ""
            rule = wrong["msg"].removeprefix("Value error, ")
            lines.append(label + rule.replace("Input should be", "must be"))
        raise BadSettings("\n".join(lines)) from None
