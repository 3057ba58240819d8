"""io_uring(7), as far as a broadcast needs it: many sends in one system call.

A system call for each socket costs more than the call: when it comes back, what the way to the next
one needs has left the processor's caches. A ring is told all sockets at once, and the kernel goes
from one to the next by itself.

Only sends that are over at once are asked for (`MSG_DONTWAIT`). So when the call comes back nothing
is under way, no memory has to be kept for it, and the ring needs no place in the event loop.
"""

import ctypes
import errno
import mmap
import os
import platform
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Any, Final

# At most this number of sends is one system call; a power of two.
ENTRIES: Final = 512

# From <linux/io_uring.h> and the tables of system calls, in which these machines are at one.
_MACHINES: Final = frozenset({"x86_64", "aarch64"})
_SETUP, _ENTER = 425, 426
# One bad socket does not hold up those behind it; and the ring is one thread's, which spares locks.
_SETUP_FLAGS: Final = 1 << 7 | 1 << 12 | 1 << 13  # SUBMIT_ALL, SINGLE_ISSUER, DEFER_TASKRUN
_SINGLE_MMAP: Final = 1 << 0
_GETEVENTS: Final = 1 << 0
_OP_SEND: Final = 26
_SQES: Final = 0x1000_0000  # where the entries are, for mmap(2)
_PARAMS: Final = struct.Struct("=10I 8IQ 8IQ")  # io_uring_params
_SQE: Final = struct.Struct("=BBHiQQIIQ24x")  # io_uring_sqe
_CQE: Final = struct.Struct("=QiI")  # io_uring_cqe
_WRAP: Final = 2**32  # heads and tails count on, and over


class IoUringSender:
    """A ring of sends with the same flags, MSG_DONTWAIT among them.

    For one thread of one process. Raises OSError where the kernel has none, which is before Linux
    6.1, or allows none.
    """

    _ring = -1
    _data: bytes | None = None  # what is sent, and where it is
    _address = array("Q", [0])
    _size = -1

    def __init__(self, flags: int) -> None:
        if sys.platform != "linux" or platform.machine() not in _MACHINES:
            raise OSError(errno.ENOSYS, "no io_uring is known for this platform")
        # It keeps Python's lock, as `send` does.
        self._call: Any = ctypes.PyDLL(None, use_errno=True).syscall
        asked = _PARAMS.pack(0, 0, _SETUP_FLAGS, *[0] * 25)
        params = ctypes.create_string_buffer(asked, _PARAMS.size)
        self._ring = self._call(_SETUP, ENTRIES, params)
        if self._ring < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"io_uring: {os.strerror(number)}")
        self._map(_PARAMS.unpack(params.raw), flags)

    def __del__(self) -> None:
        if self._ring >= 0:
            os.close(self._ring)

    def _map(self, params: Sequence[int], flags: int) -> None:
        entries, self._completions, *_ = params
        if entries != ENTRIES or not params[5] & _SINGLE_MMAP:
            raise OSError(errno.ENOSYS, "this io_uring is not known here")
        head, tail, _, _, _, _, order, _, _ = params[10:19]
        done_head, done_tail, _, _, _, done, _, _, _ = params[19:28]
        size = max(order + 4 * entries, done + _CQE.size * self._completions)
        memory = memoryview(mmap.mmap(self._ring, -(-size // 8) * 8))
        words = memory.cast("I")
        self._head, self._tail = words[head // 4 :], words[tail // 4 :]
        self._done_head, self._done_tail = words[done_head // 4 :], words[done_tail // 4 :]
        # What stays as it is: each place in the ring has an entry of its own, which is a send.
        words[order // 4 : order // 4 + entries] = array("I", range(entries))
        sqes = memoryview(mmap.mmap(self._ring, _SQE.size * entries, offset=_SQES))
        for number in range(entries):
            entry = (_OP_SEND, 0, 0, -1, 0, 0, 0, flags, number)
            _SQE.pack_into(sqes, number * _SQE.size, *entry)
        # What changes, by columns.
        self._descriptors = sqes.cast("i")[1::16]
        self._addresses = sqes.cast("Q")[2::8]
        self._sizes = sqes.cast("I")[6::16]
        self._done = memory[done : done + _CQE.size * self._completions]
        self._which, self._results = self._done.cast("Q")[::2], self._done.cast("i")[2::4]
        # How these look when each send in turn took all there was.
        self._well = bytearray(self._done.nbytes)
        for number in range(self._completions):
            _CQE.pack_into(self._well, number * _CQE.size, number % entries, 0, 0)
        self._sent_well = memoryview(self._well).cast("i")[2::4]

    def send_all(self, descriptors: "array[int]", data: bytes) -> dict[int, int]:
        """Send the same to many sockets, in their order.

        Returns how many bytes one took that did not take all, by its place, and less than 0 for
        none.
        """
        if data is not self._data:
            self._set(data)
        parts: dict[int, int] = {}
        for start in range(0, len(descriptors), ENTRIES):
            for place, part in self._send(descriptors[start : start + ENTRIES]).items():
                parts[start + place] = part
        return parts

    def _set(self, data: bytes) -> None:
        """Send this from now on."""
        self._data = data
        self._address = array("Q", [ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0])
        if len(data) != self._size:
            self._size = len(data)
            self._sizes[:] = array("I", [len(data)]) * ENTRIES
            self._sent_well[:] = array("i", [len(data)]) * self._completions

    def _send(self, descriptors: "array[int]") -> dict[int, int]:
        count, tail = len(descriptors), self._tail[0]
        first = tail % ENTRIES
        room = ENTRIES - first
        over = max(count - room, 0)
        self._descriptors[first : first + count] = descriptors[:room]
        self._descriptors[:over] = descriptors[room:]
        # Not of all entries beforehand, as long as the size is the same: a few sends need not touch
        # the whole ring.
        self._addresses[first : first + count] = self._address * (count - over)
        self._addresses[:over] = self._address * over
        self._tail[0] = (tail + count) % _WRAP
        self._enter(count, count)
        taken = (self._head[0] - tail) % _WRAP
        if taken != count:  # short of memory: what it left is not to be sent with the next ones
            self._tail[0] = self._head[0]
        parts = self._parts(taken, count, first)
        self._done_head[0] = (self._done_head[0] + taken) % _WRAP
        return parts

    def _parts(self, taken: int, count: int, first: int) -> dict[int, int]:
        """Await `taken` completions; return what they say of sends that did not take all."""
        head = self._done_head[0]
        while (self._done_tail[0] - head) % _WRAP < taken:
            self._enter(0, taken)  # all were over at once until now; and if not, they will be
        start = head % self._completions
        over = max(start + taken - self._completions, 0)
        spans = [(start, start + taken - over), (0, over)]
        # To look at all at once takes a tenth of the time.
        if taken == count and all(self._is_well(*span) for span in spans):
            return {}
        parts = dict.fromkeys(range(count), -1)
        for begin, end in spans:
            for number, result in zip(
                self._which[begin:end], self._results[begin:end], strict=True
            ):
                place = (number - first) % ENTRIES
                if result == self._size:
                    del parts[place]
                else:
                    parts[place] = result
        return parts

    def _is_well(self, begin: int, end: int) -> bool:
        """Whether completions are in turn, and each send took all."""
        span = slice(_CQE.size * begin, _CQE.size * end)
        return self._done[span].tobytes() == self._well[span]

    def _enter(self, submit: int, wait: int) -> None:
        # Heads and tails tell what came of it, errors or not.
        self._call(_ENTER, self._ring, submit, wait, _GETEVENTS, None, 0)
