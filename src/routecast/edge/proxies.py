"""Proxies in front of the server: whose word is taken on where a request comes from."""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network


class Proxies:
    """The proxies that are trusted, by addresses and networks; `*` is anybody.

    The rule is that of uvicorn's middleware, which the transport's own protocols do not pass.
    """

    def __init__(self, trusted: str) -> None:
        names = {name.strip() for name in trusted.split(",")} - {""}
        self._everybody = "*" in names
        self._networks = [ip_network(name) for name in names - {"*"}]

    def client_of(self, peer: str, forwarded: Iterable[str]) -> str:
        """Return a client's address, from its peer's and the `X-Forwarded-For` headers.

        Each proxy adds whom it heard from at the end, so the client is the last who is none of
        ours: what stands before that, anybody may have written.
        """
        hops = [hop for header in forwarded for each in header.split(",") if (hop := each.strip())]
        if not hops or not self._trusts(peer):
            return peer
        if self._everybody:
            return hops[0]
        strangers = (hop for hop in reversed(hops) if not self._trusts(hop))
        return next(strangers, hops[0])

    def _trusts(self, name: str) -> bool:
        if self._everybody:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return any(address in network for network in self._networks)
