"""Hosts and origins: which a server accepts, and which pages may use it."""

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routecast.core.sites import Sites, host_entry, origin_entry, read_host, read_origin
from routecast.errors import BadBody, Forbidden, Misdirected, RoutecastError

SITES = Sites(
    {"https://grafana.example", "https://*.pages.example", "http://[2001:db8::5]:3000"},
    {"routecast.example", "*.svc.cluster.local"},
)

# -- Host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "192.0.2.7:80",
        "192.0.2.7.",
        "[::1]",
        "[::1]:8000",
        "[2001:DB8:0::7]:8443",
        "[fe80::1%25eth0]:8000",
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "routecast",
        "routecast_node-1:8000",
        "app.localhost:8000",
        "grafana.example",
        "Grafana.Example.:443",
        "a.pages.example",
        "b.a.pages.example",
        "routecast.example",
        "routecast.example:",
        "node-1.nodes.svc.cluster.local:8000",
    ],
)
def test_hosts_that_are_answered_for(host: str) -> None:
    """These are addresses, private names, hosts of allowed origins, and listed names."""
    SITES.require_known_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "routecast.example.evil.example",
        "evil-routecast.example",
        "pages.example",
        "svc.cluster.local",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.1",
        "0177.0.0.1",
        "1.2.3.4.5",
        "host.docker.internal",
        "xn--bcher-kva.example",
        "bÃ¼cher.example",  # UTF-8, as header bytes are taken
    ],
)
def test_hosts_of_others(host: str) -> None:
    """A name that its owner could point at this server is refused; the error names the setting."""
    with pytest.raises(Misdirected, match="ROUTECAST_ALLOWED_HOSTS"):
        SITES.require_known_host(host)


@pytest.mark.parametrize(
    "host",
    [
        *("", ":80", "a b", "a/b", "user@routecast", "routecast,evil.example", "[::1", "::1"),
        *("[x]", "routecast:port", "routecast:99999", "a..b", ".", "é" * 300, "a" * 64, "a%2eb"),
    ],
)
def test_text_that_is_no_host_is_refused(host: str) -> None:
    """An invalid host is a bad request, also if all hosts are allowed."""
    for sites in (SITES, Sites(hosts={"*"})):
        with pytest.raises(BadBody, match="Host"):
            sites.require_known_host(host)


def test_all_hosts_may_be_allowed() -> None:
    """The setting for hosts allows all; the one for origins does not."""
    Sites(hosts={"*"}).require_known_host("evil.example")
    with pytest.raises(Misdirected):
        Sites(origins={"*"}).require_known_host("evil.example")


def test_an_international_name_is_one_in_all_its_forms() -> None:
    """Punycode, UTF-8 bytes, composed characters and capitals are the same name."""
    sites = Sites(hosts={host_entry("Bücher.example")})
    for host in ("xn--bcher-kva.example", "XN--BCHER-KVA.example.", "bÃ¼cher.example"):
        sites.require_known_host(host)
    assert host_entry("straße.example") == "xn--strae-oqa.example"  # as browsers have it


@given(st.text(max_size=500))
@example("xn--\xff")
def test_any_host_is_answered_for_or_refused(host: str) -> None:
    """A host raises nothing but an error with a status."""
    with suppress(RoutecastError):
        SITES.require_known_host(host)


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=2, max_size=5).map(".".join)
PORT = st.none() | st.integers(0, 65_535)


@given(NAME, PORT, st.booleans())
def test_a_host_matches_as_clients_may_write_it(name: str, port: int | None, dot: bool) -> None:
    """Case, port and a final dot do not matter; a subdomain is another host."""
    sites = Sites(hosts={host_entry(name)})
    written = name.upper() + "." * dot + ("" if port is None else f":{port}")
    assert sites.is_known_host(written)
    assert not sites.is_known_host(f"y.{written}") or name.endswith(".localhost")


# -- Origin -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "metrics.example"),
        (None, None),
        ("http://192.0.2.7:8000", "192.0.2.7:8000"),
        ("http://192.0.2.7", "192.0.2.7:80"),
        ("https://192.0.2.7", "192.0.2.7:443"),
        ("https://192.0.2.7", "192.0.2.7"),
        ("http://192.0.2.7:80", "192.0.2.7"),
        ("https://[2001:db8::7]:8443", "[2001:DB8:0::7]:8443"),
        ("http://localhost:3000", "127.0.0.1:8000"),
        ("http://127.0.0.1:3000", "localhost:8000"),
        ("http://[::1]:3000", "[::1]:8000"),
        ("http://LocalHost.:3000", "localhost:8000"),
        ("https://grafana.example", "metrics.example"),
        ("https://grafana.example:443", None),
        ("HTTPS://Grafana.Example.", "["),
        ("https://a.pages.example", "metrics.example"),
        ("http://[2001:db8:0::5]:3000", "metrics.example"),
    ],
    ids=str,
)
def test_origins_that_may_connect(origin: str | None, host: str | None) -> None:
    """These are no browser, the own page, local pages among themselves, and listed sites."""
    SITES.require_allowed_origin(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "metrics.example"),
        ("https://evil.example", "localhost:8000"),
        ("https://evil.example", None),
        ("http://localhost.evil.example", "localhost:8000"),
        ("http://localhost:3000", "metrics.example"),
        # The page of a name that was made to point here, after the page was loaded elsewhere.
        ("http://metrics.example:8000", "metrics.example:8000"),
        ("http://192.0.2.8:8000", "192.0.2.7:8000"),
        ("http://192.0.2.7", "192.0.2.7:443"),
        ("https://192.0.2.7", "192.0.2.7:80"),
        ("https://metrics.example:444", "metrics.example"),
        ("http://grafana.example", "metrics.example"),
        ("https://grafana.example:8443", "grafana.example:8443"),
        ("https://pages.example", "pages.example"),
        ("https://pages.example.evil.example", "metrics.example"),
        ("http://a.pages.example", "metrics.example"),
        ("https://grafana.example/", "metrics.example"),
        ("null", "localhost:8000"),
        ("", "localhost:8000"),
        ("file://", "localhost:8000"),
        ("chrome-extension://localhost", "localhost:8000"),
        ("http://[", "localhost:8000"),
        ("http://localhost", "[::1"),
        ("https://" + "a" * 10_000, "localhost:8000"),
    ],
    ids=str,
)
def test_origins_that_may_not_connect(origin: str, host: str | None) -> None:
    """Pages of other sites and invalid headers are refused; the error names the setting."""
    with pytest.raises(Forbidden, match=r"may not connect; .* ROUTECAST_ALLOWED_ORIGINS"):
        SITES.require_allowed_origin(origin, host)


def test_star_allows_all_origins() -> None:
    """`*` allows all origins, for trusted networks."""
    Sites(origins={"*"}).require_allowed_origin("null", None)


@given(st.none() | st.text(), st.none() | st.text())
def test_any_headers_are_let_in_or_refused(origin: str | None, host: str | None) -> None:
    """Only Forbidden is raised, and only if there is an origin."""
    try:
        Sites().require_allowed_origin(origin, host)
    except Forbidden:
        assert origin is not None


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "entry"),
    [
        ("*", "*"),
        ("https://grafana.example", "https://grafana.example"),
        ("https://grafana.example/", "https://grafana.example"),
        ("https://grafana.example:443", "https://grafana.example"),
        ("http://grafana.example:80/", "http://grafana.example"),
        ("http://GRAFANA.example.:3000", "http://grafana.example:3000"),
        ("HTTPS://grafana.example:80", "https://grafana.example:80"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://*.Example.com", "https://*.example.com"),
        ("http://[2001:DB8::0:1]:80", "http://[2001:db8::1]"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_origins_are_normalised(typed: str, entry: str) -> None:
    """The result is what a browser sends; normalising it again changes nothing."""
    assert origin_entry(typed) == entry
    assert origin_entry(entry) == entry


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("grafana.example", "https://grafana.example"),
        ("grafana.example:3000", "https://grafana.example:3000"),
        ("https://grafana.example/d/abc", "write https://grafana.example"),
        ("https://grafana.example?x=1", "write https://grafana.example"),
        ('"https://grafana.example"', "quotes"),
        ("'https://grafana.example", "quotes"),
        ("https://a.example https://b.example", "commas"),
        ("https://a.example;https://b.example", "commas"),
        ("wss://grafana.example", "write https://grafana.example"),
        ("https://me:secret@grafana.example", "write https://grafana.example"),
        ("https://grafana.*", "first label"),
        ("https://*", "first label"),
        ("https://*.*.example", "first label"),
        ("https://", "https://name"),
        ("https://:443", "https://name"),
        ("https://grafana.example:99999", "65535"),
        ("file:///page.html", "https://name"),
        ("null", "sandboxed"),
        ("https://xn--\u00fc\u200b.example", "https://name"),
    ],
)
def test_origins_that_no_browser_sends_are_refused(typed: str, fix: str) -> None:
    """The error says what to write instead."""
    with pytest.raises(ValueError, match=r"\w") as told:
        origin_entry(typed)
    assert fix in str(told.value)
    assert "secret" not in str(told.value)


@given(st.sampled_from(["http", "https"]), NAME, PORT, st.booleans())
def test_an_accepted_origin_matches(scheme: str, name: str, port: int | None, wild: bool) -> None:
    """An accepted origin, in any spelling, admits its page, and its host is answered for."""
    typed = f"{scheme.upper()}://{'*.' * wild}{name.title()}" + ("" if port is None else f":{port}")
    sites = Sites({origin_entry(typed)})
    page = f"{scheme}://{'a.' * wild}{name}" + ("" if port is None else f":{port}")
    sent = str(read_origin(page))
    assert sites.is_allowed_origin(sent, "metrics.example")
    assert sites.is_known_host(sent.partition("://")[2])


@pytest.mark.parametrize(
    ("typed", "entry"),
    [
        ("*", "*"),
        ("Routecast.Example.", "routecast.example"),
        ("*.svc.Cluster.local", "*.svc.cluster.local"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("::1", "::1"),
        ("[::1]", "::1"),
    ],
)
def test_hosts_are_normalised(typed: str, entry: str) -> None:
    """Normalising a host again changes nothing."""
    assert host_entry(typed) == entry
    assert host_entry(entry) == entry


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("https://routecast.example", "write routecast.example"),
        ("routecast.example/x", "write routecast.example"),
        ("routecast.example:8000", "write routecast.example"),
        ("*.example:80", "write *.example"),
        ('"routecast.example"', "quotes"),
        ("a.example b.example", "commas"),
        ("routecast.*", "first label"),
        ("a..b", "such as routecast.example"),
    ],
)
def test_hosts_that_no_request_has_are_refused(typed: str, fix: str) -> None:
    """The error says what to write instead."""
    with pytest.raises(ValueError, match=r"\w") as told:
        host_entry(typed)
    assert fix in str(told.value)


def test_hosts_and_origins_are_normalised() -> None:
    """`Host` and `Origin` are normalised when they are read."""
    assert read_host("[2001:DB8::1]:80") == ("2001:db8::1", 80)
    assert read_host("A.example.") == ("a.example", None)
    assert read_origin("https://A.example.:443") == ("https", "a.example", 443)


# -- with authentication ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("https://grafana.example", "routecast.example", True),
        ("https://a.pages.example", "routecast.example", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://routecast.example:8000", "routecast.example:8000", True),
        ("https://routecast.example", "routecast.example", False),
        ("https://routecast.example", "routecast.example:443", False),
        ("http://127.0.0.1:3000", "127.0.0.1:8000", False),
        ("http://localhost:8000", "127.0.0.1:8000", False),
        ("http://localhost:3000", "localhost:8000", False),
        ("https://grafana.example.evil.example", "routecast.example", False),
        ("https://grafana.example:8443", "routecast.example", False),
        ("http://grafana.example", "routecast.example", False),
        ("null", "routecast.example", False),
        ("file://", "127.0.0.1", False),
    ],
)
def test_with_authentication_only_listed_and_own_pages_are_allowed(
    origin: str, host: str, allowed: bool
) -> None:
    """Its own ones by name, too; of this machine, no other ports."""
    is_on = True
    sites = Sites(
        {"https://grafana.example", "https://*.pages.example"},
        {"routecast.example"},
        lambda: is_on,
    )
    assert sites.is_allowed_origin(origin, host) is allowed
    assert sites.is_allowed_origin(None, host)
    is_on = False  # the rules without authentication are others, and remembered apart
    assert sites.is_allowed_origin("http://localhost:3000", "localhost:8000")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_with_authentication_the_scheme_of_own_pages_counts(scheme: str) -> None:
    """On a network, anyone can make a page of the same host over plain HTTP."""
    sites = Sites((), {"routecast.example"}, lambda: True)
    for page in ("http", "https"):
        for host in ("routecast.example", f"routecast.example:{80 if page == 'http' else 443}"):
            given = f"{page}://routecast.example", host, scheme
            assert sites.is_allowed_origin(*given) is sites.is_own_origin(*given)
            assert sites.is_allowed_origin(*given) is (page == scheme)
