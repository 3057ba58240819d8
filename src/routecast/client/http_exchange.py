"""`Exchange`: one HTTP request and its answer, with limits of bytes and of the total time.

`http.client` limits neither: its timeout is for each read. So a server that sends single bytes
could hold a caller for ever, and an endless answer would fill its memory.
"""

import base64
import http.client
import io
import socket
import ssl
import time
from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from routecast.client.answers import HttpAnswer

MAX_ANSWER: Final = 1024 * 1024  # bytes, including its head; a receipt has some KiB


class AnswerTooLong(OSError):
    """An answer is longer than any answer of Routecast."""

    def __init__(self) -> None:
        super().__init__(None, f"it answered with more than {MAX_ANSWER // 1024} KiB")


class Exchange:
    """A connection for requests to one URL; `close` it after use.

    It connects when it is needed. `timeout` is the maximum time of one exchange in seconds:
    connecting, sending and reading. (Each address of a host name is tried for that time.) `proxy`
    is the URL of an HTTP proxy to use.
    """

    def __init__(self, url: str, timeout: float, proxy: str | None = None) -> None:
        self.url = url
        self._timeout = timeout
        self._headers: dict[str, str] = {}
        parts = urlsplit(url)
        through = parts if proxy is None else urlsplit(proxy)
        assert parts.hostname  # `Server.parse` ensures it
        assert through.hostname
        if parts.username is not None:
            self._headers["Authorization"] = _basic(parts.username, parts.password)
        self._target = parts.path + (f"?{parts.query}" if parts.query else "")
        credentials = {}
        if through is not parts and through.username is not None:
            credentials["Proxy-Authorization"] = _basic(through.username, through.password)
        # Always given: without a port, http.client takes the last part of an IPv6 address for the
        # port.
        port = through.port or http.client.HTTP_PORT
        if parts.scheme == "https":
            secure = parts.port or http.client.HTTPS_PORT
            port = secure if through is parts else port
            context = ssl.create_default_context()
            self._connection: _Timed = _TimedTls(through.hostname, port, context=context)
            if through is not parts:
                self._connection.set_tunnel(parts.hostname, secure, credentials)
        else:
            self._connection = _Timed(through.hostname, port)
            if through is not parts:
                host = parts.netloc.rpartition("@")[2]
                self._target = f"http://{host}{self._target}"
                self._headers |= credentials

    def post(self, body: bytes, headers: dict[str, str]) -> HttpAnswer:
        """Send a body and read the whole answer.

        Raises OSError (TimeoutError, AnswerTooLong) and http.client.HTTPException; the connection
        is closed then.
        """
        return self._request("POST", body, headers)

    def get(self, headers: dict[str, str]) -> HttpAnswer:
        """Ask for the URL, and read the whole answer. Raises as `post` does."""
        return self._request("GET", None, headers)

    def _request(self, method: str, body: bytes | None, headers: dict[str, str]) -> HttpAnswer:
        """Send a request and read the whole answer.

        Raises OSError (TimeoutError, AnswerTooLong) and http.client.HTTPException; the connection
        is closed then.
        """
        self._connection.until = time.monotonic() + self._timeout
        idle = self._connection.sock is not None
        try:
            try:
                return self._request_once(method, body, headers)
            except ConnectionError:
                if not idle:
                    raise
                # The server may have closed an idle connection just before this request.
                self.close()
                return self._request_once(method, body, headers)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next request connects again."""
        self._connection.close()

    def abort(self) -> None:
        """End an exchange that another thread waits for: its call raises OSError."""
        if (sock := self._connection.sock) is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _request_once(self, method: str, body: bytes | None, headers: dict[str, str]) -> HttpAnswer:
        self._connection.request(method, self._target, body, {**self._headers, **headers})
        with self._connection.getresponse() as response:
            text = response.read()
            return HttpAnswer(response.status, response.reason, response.headers, text)


class _Timed(http.client.HTTPConnection):
    """A connection on which all operations must end by the time `until`."""

    until = 0.0

    def connect(self) -> None:
        self.timeout = _left(self.until)
        super().connect()

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        # Not `sendall`: over TLS its timeout is for each record.
        unsent = memoryview(data)
        while unsent:
            self.sock.settimeout(_left(self.until))
            unsent = unsent[self.sock.send(unsent) :]

    def response_class(  # type: ignore[override]  # -- it is called as the class would be
        self, sock: socket.socket, *given: Any, **named: Any
    ) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(sock, *given, **named)
        response.fp.close()
        response.fp = io.BufferedReader(_Bounded(sock, self.until))
        return response


class _TimedTls(_Timed, http.client.HTTPSConnection):
    """The same over TLS."""


class _Bounded(io.RawIOBase):
    """Reads from a socket at most MAX_ANSWER bytes, and not after `until`."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open until it is closed
        self._until = until
        self._room = MAX_ANSWER

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._until))
        count = self._raw.readinto(buffer)
        self._room -= count or 0
        if self._room < 0:
            raise AnswerTooLong
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _left(until: float) -> float:
    """Return the seconds until a time. Raises TimeoutError if it has passed."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _basic(user: str, password: str | None) -> str:
    text = f"{unquote(user)}:{unquote(password or '')}"
    return f"Basic {base64.b64encode(text.encode()).decode()}"
