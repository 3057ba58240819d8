"""A real OpenID Connect provider as a process, on a free port."""

import subprocess
from contextlib import suppress
from typing import Final, Self

from tests.support.needs import skip_without
from tests.support.node import modules, node
from tests.support.ports import free_port

SCRIPT: Final = __file__.removesuffix("oidc.py") + "oidc_provider.mjs"
CLIENT_SECRET: Final = "the secret of a client in tests"
STOP_SECONDS: Final = 10.0


class OidcServer:
    """The provider, for a server of ours at a URL. Use as a context manager, or `start`."""

    def __init__(self, url: str) -> None:
        self.port = free_port()
        self._url = url
        self._process: subprocess.Popen[str] | None = None

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it; return when it listens."""
        packages = modules()
        if not (packages / "oidc-provider").exists():
            skip_without("the packages of clients/js", "npm ci --prefix clients/js")
        redirect = f"{self._url}/auth/callback"
        self._process = subprocess.Popen(
            [node(), SCRIPT, str(packages), str(self.port), redirect, CLIENT_SECRET],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "listening" in line:
                return self
        raise AssertionError("the provider has ended")

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
