"""Writing to sockets past their transports, for real transports."""

import asyncio
import errno
import os
import resource
import socket
import ssl
import subprocess
import sys
import textwrap
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from routecast.edge.ws import socket_send as module
from routecast.edge.ws.io_uring import ENTRIES, IoUringSender
from routecast.edge.ws.socket_send import (
    FLAGS,
    IO_URING_FROM,
    NO_DESCRIPTOR,
    descriptor,
    queued,
    send,
    send_all,
)
from tests.support.needs import skip_without

SMALL = 4_096


def test_sent_bytes_arrive() -> None:
    """The returned number of bytes arrives, and none if the socket is full or closed."""
    near, far = socket.socketpair()
    with far:
        with near:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            assert send(near.fileno(), b"hello", 5, FLAGS) == 5
            assert far.recv(100) == b"hello"
            data, taken = b"x" * 1_000_000, 0
            while (sent := send(near.fileno(), data, len(data), FLAGS)) != -1:
                taken += sent
            assert taken > 0
            gone = near.fileno()
        assert send(gone, b"hello", 5, FLAGS) == -1
        left = 0
        while piece := far.recv(1_000_000):
            left += len(piece)
    assert left == taken
    assert send(NO_DESCRIPTOR, b"hello", 5, FLAGS) == -1
    assert queued(NO_DESCRIPTOR) == 0


# -- to many ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ring() -> IoUringSender:
    """A ring, if the kernel has io_uring."""
    try:
        return IoUringSender(FLAGS)
    except OSError as error:
        skip_without("io_uring", f"run where the kernel allows it ({error.strerror})")


@pytest.fixture(params=["by a ring", "one by one"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send with a ring, and without."""
    ring = request.getfixturevalue("ring") if request.param == "by a ring" else None
    monkeypatch.setattr(module, "_ring", lambda: ring)


class Pairs:
    """A number of socket pairs, to whose near ends a test writes."""

    def __init__(self, count: int) -> None:
        with ExitStack() as stack:
            pairs = [socket.socketpair() for _ in range(count)]
            for near, far in pairs:
                stack.enter_context(near)
                stack.enter_context(far)
                near.setblocking(False)
                far.setblocking(False)
            self.near, self.far = map(list, zip(*pairs, strict=True))
            self.descriptors = array("i", [each.fileno() for each in self.near])
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def pairs() -> Iterator[Pairs]:
    """More pairs than a ring takes at once."""
    many = 2 * ENTRIES + 50
    needed = 4 * many
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    made = Pairs(many)
    yield made
    made.close()


def read(far: socket.socket) -> bytes:
    """Return the bytes that have arrived."""
    pieces = []
    while True:
        try:
            pieces.append(far.recv(1_000_000))
        except BlockingIOError:
            return b"".join(pieces)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    "count", [0, 1, IO_URING_FROM - 1, IO_URING_FROM, ENTRIES, ENTRIES + 1, 2 * ENTRIES + 50]
)
def test_all_are_sent_the_same(pairs: Pairs, count: int) -> None:
    """Each socket gets the bytes once, in every round, wherever in the ring it begins."""
    for turn in range(3):
        data = b"%d of %d\0" % (turn, count) * 20
        assert not send_all(pairs.descriptors[:count], data)
        assert [read(far) for far in pairs.far] == [data] * count + [b""] * (len(pairs.far) - count)


@pytest.mark.usefixtures("ways")
def test_each_reports_itself() -> None:
    """A socket that is full, partly full, shut or closed does not delay the others."""
    pairs = Pairs(100)
    near, far = pairs.near, pairs.far
    data = b"0123456789" * 30_000
    for each in near:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(data))
    for number in (3, 40, 99):  # full
        near[number].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        while send(near[number].fileno(), b"x" * 100, 100, FLAGS) > 0:
            pass
        assert set(read(far[number])) == {ord("x")}
        while send(near[number].fileno(), b"x" * 100, 100, FLAGS) > 0:
            pass
    for number in (7, 41):
        near[number].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    far[8].close()
    near[9].shutdown(socket.SHUT_WR)
    gone = pairs.descriptors[50]
    near[50].close()
    pairs.descriptors[60] = NO_DESCRIPTOR
    assert gone == pairs.descriptors[50]
    sent = send_all(pairs.descriptors, data)
    assert [number for number, each in sent.items() if each < 0] == [3, 8, 9, 40, 50, 60, 99]
    assert [number for number, each in sent.items() if 0 <= each < len(data)] == [7, 41]
    for number, each in enumerate(far):
        if sent.get(number, 0) >= 0:
            assert read(each) == data[: sent.get(number)]
    pairs.close()


@given(st.lists(st.tuples(st.integers(0, 2 * ENTRIES + 50), st.integers(0, 300)), max_size=8))
def test_a_ring_sends_what_a_loop_would(
    ring: IoUringSender, pairs: Pairs, calls: list[tuple[int, int]]
) -> None:
    """This holds after any earlier sends, and after the ring has wrapped around."""
    expected = [b""] * len(pairs.far)
    for start, count in calls:
        data = b"%d,%d;" % (start, count)
        chosen = range(start, min(start + count, len(pairs.far)))
        descriptors = pairs.descriptors[chosen.start : chosen.stop]
        assert not ring.send_all(descriptors, data)
        for number in chosen:
            expected[number] += data
    assert [read(far) for far in pairs.far] == expected


def test_without_a_ring_all_is_sent_one_by_one() -> None:
    """Here the kernel gives no ring because no file can be opened."""
    program = """
        import array, logging, resource, socket
        from routecast.edge.ws.socket_send import send_all
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        pairs = [socket.socketpair() for _ in range(50)]
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        assert not send_all(array.array("i", [near.fileno() for near, _ in pairs]), b"hello")
        assert {far.recv(100) for _, far in pairs} == {b"hello"}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    if sys.platform == "linux":
        assert "io_uring is not available (io_uring: Too many open files)" in done.stderr


def test_threads_and_forks_have_rings_of_their_own(pairs: Pairs) -> None:
    """With a shared ring, frames of one could reach clients of the other."""
    half = len(pairs.near) // 2
    parts = [slice(half), slice(half, 2 * half)]

    def tell(part: slice, data: bytes) -> None:
        for _ in range(200):
            assert not send_all(pairs.descriptors[part], data)
            for far in pairs.far[part]:
                assert far.recv(100) == data

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(tell, *each) for each in zip(parts, (b"a", b"b"), strict=True)]:
            done.result()
    tell(parts[0], b"c")
    child = os.fork()
    if not child:
        code = 1
        with suppress(BaseException):
            tell(parts[1], b"d")
            code = 0
        os._exit(code)
    tell(parts[0], b"e")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_ring_that_is_let_go_of_is_closed() -> None:
    """A thread's ring is closed with the thread."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    try:
        IoUringSender(FLAGS)
    except OSError as error:
        skip_without("io_uring", f"run where the kernel allows it ({error.strerror})")
    for _ in range(20):
        IoUringSender(FLAGS)
    assert descriptors() == before


def test_an_unknown_platform_has_no_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown platform is not tried."""
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(OSError) as refused:
        IoUringSender(FLAGS)
    assert refused.value.errno == errno.ENOSYS


# -- of transports ------------------------------------------------------------------------------


class _Told(asyncio.Protocol):
    """Tells the descriptor of its transport."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tell(descriptor(transport))


async def _descriptor_of(context: ssl.SSLContext | None, certificate: Path) -> int:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()
    server = await loop.create_server(lambda: _Told(told.set_result), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cafile=str(certificate)) if context else None
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    async with server:
        found = await told
        writer.close()
    return found


def test_tls_connections_are_never_written_to_directly(certificate: Path) -> None:
    """A TLS transport has no descriptor to send to; a plain one has, in either event loop."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    for run in (asyncio.run, uvloop.run):
        assert run(_descriptor_of(context, certificate)) == NO_DESCRIPTOR
        assert run(_descriptor_of(None, certificate)) > 2
