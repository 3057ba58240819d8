"""Tests of `Proxies`: which proxies are trusted, and which address a request comes from."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.edge.proxies import MAX_HOPS, Proxies, limit_key, read_address, read_network

CLIENT, PROXY, OUTER = "203.0.113.9", "127.0.0.1", "10.1.2.3"
TRUSTED = "127.0.0.1, ::1, 10.0.0.0/8, 2001:db8:1::/48"


@pytest.mark.parametrize(
    ("remote", "forwarded", "client"),
    [
        (CLIENT, [], CLIENT),
        (CLIENT, ["198.51.100.1"], CLIENT),  # not a trusted proxy
        (PROXY, [], PROXY),
        (PROXY, [""], PROXY),
        (PROXY, [CLIENT], CLIENT),
        (PROXY, [f"198.51.100.1, {CLIENT}"], CLIENT),  # the client sent the first one
        (PROXY, [CLIENT, OUTER], CLIENT),
        (PROXY, [f"{CLIENT}, {OUTER}"], CLIENT),
        (PROXY, [f",{CLIENT},, {OUTER} ,"], CLIENT),
        (PROXY, [f"{CLIENT}:4711, {OUTER}:80"], CLIENT),
        (PROXY, [f"{CLIENT}, [2001:DB8:1::7]:80"], CLIENT),
        (PROXY, [f"{CLIENT}, ::FFFF:{OUTER}"], CLIENT),
        (PROXY, [OUTER], OUTER),
        (f"::ffff:{PROXY}", [CLIENT], CLIENT),
        ("::FFFF:7f00:1", [CLIENT], CLIENT),
        (f"::ffff:{CLIENT}", [OUTER], CLIENT),
        ("fe80::1%eth0", [], "fe80::1"),
        # In place of a text that is no address, the proxy that sent it is the client.
        (PROXY, ["nonsense"], PROXY),
        (PROXY, ["unknown"], PROXY),
        (PROXY, [f"{CLIENT}, _hidden, {OUTER}"], OUTER),
        (PROXY, [f"_hidden, {CLIENT}"], CLIENT),
        (PROXY, ["a" * 20_000], PROXY),
        # A connection without an address, as over a Unix socket, is no proxy.
        ("", [CLIENT], ""),
        ("testclient", [CLIENT], ""),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy(
    remote: str, forwarded: list[str], client: str
) -> None:
    """A trusted proxy says from whom it got the request; entries before that are not trusted."""
    assert Proxies(TRUSTED).client_of(remote, forwarded) == client


def test_all_or_no_proxies_may_be_trusted() -> None:
    """With `*` the first entry is the client; without trusted proxies no list is read."""
    assert Proxies("*").client_of(CLIENT, [f"{OUTER}:1, {PROXY}"]) == OUTER
    assert Proxies("*").client_of("", [CLIENT]) == CLIENT
    assert Proxies("*").client_of(PROXY, [f"{CLIENT}, unknown, {OUTER}"]) == OUTER
    assert Proxies("").client_of(PROXY, [CLIENT]) == PROXY


def test_a_long_list_is_read_from_its_end() -> None:
    """At most `MAX_HOPS` entries are read."""
    proxies = Proxies(TRUSTED)
    hops = ", ".join([CLIENT, *[OUTER] * (MAX_HOPS - 1)])
    assert proxies.client_of(PROXY, [hops]) == CLIENT
    assert proxies.client_of(PROXY, [f"{CLIENT},{hops}, 10.0.0.1"]) == OUTER
    assert proxies.client_of(PROXY, [*[CLIENT] * 1_000, *[OUTER] * MAX_HOPS]) == OUTER
    assert proxies.client_of(PROXY, ["," * 1_000_000]) == PROXY


ADDRESSES = st.ip_addresses()


def spellings(address: str) -> st.SearchStrategy[str]:
    """Draw one of the ways in which proxies write an address."""
    ways = [address, f" {address}\t", f'"{address}"', address.upper()]
    found = ip_address(address)
    if found.version == 4:
        ways += [f"{address}:443", f"{address}:_port", f'"{address}:1"', f"::ffff:{address}"]
        ways += [f"[::FFFF:{address}]:80", f"::ffff:{int(found) >> 16:x}:{int(found) & 65535:x}"]
    else:
        ways += [f"[{address}]", f"[{address}]:443", f'"[{address}]:_x"', found.exploded]
        ways += [f"{address}%eth0", f"[{address}%25en1]:80"]
    return st.sampled_from(ways)


def canonical(address: str) -> str:
    """Return the canonical text of an address."""
    found = ip_address(address)
    mapped = found.ipv4_mapped if found.version == 6 else None  # type: ignore[union-attr]
    return str(mapped or found)


@given(st.data(), ADDRESSES.map(str))
def test_all_spellings_of_an_address_are_equal(data: st.DataObject, address: str) -> None:
    """A proxy may write it in any way, as a hop or as the remote address."""
    written = data.draw(spellings(address))
    assert read_address(written) == canonical(address)
    assert Proxies("*").client_of(PROXY, [written]) == canonical(address)


@given(
    st.data(),
    st.lists(ADDRESSES.map(str), max_size=6),
    st.sampled_from([PROXY, OUTER, CLIENT, "2001:db8:1::1"]),
)
def test_the_list_is_followed_as_far_as_it_is_trusted(
    data: st.DataObject, hops: list[str], remote: str
) -> None:
    """A plain loop over parsed addresses gives the same, however hops are written and split."""
    ours = [read_network(name.strip()) for name in TRUSTED.split(",")]
    client = canonical(remote)
    for hop in reversed(hops):
        if not any(ip_address(client) in network for network in ours):
            break
        client = canonical(hop)
    written = [data.draw(spellings(hop)) for hop in hops]
    cut = data.draw(st.integers(0, len(written)))
    headers = [",".join(written[:cut]), ", ".join(written[cut:])]
    assert Proxies(TRUSTED).client_of(remote, headers) == client


@given(st.text(max_size=60), st.lists(st.text(max_size=300), max_size=4))
def test_any_headers_give_a_canonical_address_or_none(remote: str, forwarded: list[str]) -> None:
    """Random texts never cause an error."""
    for trusted in ("*", TRUSTED):
        found = Proxies(trusted).client_of(remote, forwarded)
        assert found == "" or found == canonical(found)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.7", "203.0.113.7", True),
        ("203.0.113.7", "203.0.113.8", False),
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("", "2001:db8::1", False),
    ],
)
def test_limits_count_ipv6_by_its_network(one: str, other: str, same: bool) -> None:
    """One customer has at least a /64."""
    assert (limit_key(one) == limit_key(other)) is same


@pytest.mark.parametrize(
    ("typed", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.7", "10.0.0.7/32"),
        ("::ffff:10.0.0.7", "10.0.0.7/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("[2001:DB8::]/32", "2001:db8::/32"),
        ("fe80::1%eth0", "fe80::1/128"),
    ],
)
def test_networks_are_canonical_like_addresses(typed: str, network: str) -> None:
    """They have the form with which addresses of clients are compared."""
    assert str(read_network(typed)) == network


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("10.0.0.1:80", "write 10.0.0.1"),
        ("nginx", "not a name"),
        ("10.0.0.0/99", "not a name"),
    ],
)
def test_networks_that_never_match_are_refused(typed: str, fix: str) -> None:
    """The error says what to write instead."""
    with pytest.raises(ValueError, match=r"\w") as told:
        read_network(typed)
    assert typed in str(told.value)
    assert fix in str(told.value)


@pytest.mark.parametrize(
    ("remote", "told", "scheme"),
    [
        (PROXY, ["https"], "https"),
        (PROXY, ["HTTPS "], "https"),
        (PROXY, ["http, https"], "https"),  # set by the nearest proxy
        (PROXY, ["gopher"], None),
        (PROXY, [], None),
        (CLIENT, ["https"], None),
    ],
)
def test_a_trusted_proxy_names_the_scheme(remote: str, told: list[str], scheme: str | None) -> None:
    """The scheme of other senders is ignored."""
    assert Proxies(TRUSTED).scheme_of(remote, told) == scheme
