"""`IoUringSender`: sends to many sockets in one system call, by io_uring(7).

With one system call per socket, the code and data for the next call leave the processor's caches in
between. With io_uring the kernel gets all sockets at once, and stays in its own loop.

Every send has MSG_DONTWAIT, so it is over when the system call returns. No memory must be kept for
running sends, and the event loop is not involved.

**Memory ordering.** The rings are shared with the kernel, and Python has no memory barriers. None
are needed here. No kernel thread polls the submission queue (IORING_SETUP_SQPOLL), so the kernel
reads it only within `io_uring_enter`, which the same thread calls after it has written. With
IORING_SETUP_DEFER_TASKRUN the kernel also writes completions only within that call, in the context
of the same thread. So one thread makes all accesses, in its program order.
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

# Entries of the submission queue, a power of two: the maximum number of sends in one system call.
ENTRIES: Final = 512

# Names and values are those of <linux/io_uring.h>. The system call numbers are the same on these
# machines.
_MACHINES: Final = frozenset({"x86_64", "aarch64"})
NR_IO_URING_SETUP: Final = 425
NR_IO_URING_ENTER: Final = 426
IORING_SETUP_SUBMIT_ALL: Final = 1 << 7  # one bad socket does not stop those after it
IORING_SETUP_SINGLE_ISSUER: Final = 1 << 12  # only one thread uses the ring: no locks
IORING_SETUP_DEFER_TASKRUN: Final = 1 << 13
IORING_FEAT_SINGLE_MMAP: Final = 1 << 0
IORING_ENTER_GETEVENTS: Final = 1 << 0
IORING_OP_SEND: Final = 26
IORING_OFF_SQES: Final = 0x1000_0000
_PARAMS: Final = struct.Struct("=10I 8IQ 8IQ")  # struct io_uring_params
_SQE: Final = struct.Struct("=BBHiQQIIQ24x")  # struct io_uring_sqe
_CQE: Final = struct.Struct("=QiI")  # struct io_uring_cqe
_WRAP: Final = 2**32  # heads and tails are 32-bit counters that wrap


class IoUringSender:
    """A ring of sends with the same flags, MSG_DONTWAIT among them.

    Only the thread that made it may use it. Raises OSError if the kernel forbids io_uring or has no
    suitable one (before Linux 6.1).
    """

    _fd = -1
    _data: bytes | None = None  # the payload, kept alive because the ring has its address
    _address = array("Q", [0])
    _size = -1

    def __init__(self, flags: int) -> None:
        if sys.platform != "linux" or platform.machine() not in _MACHINES:
            raise OSError(errno.ENOSYS, "io_uring is not supported on this platform")
        # PyDLL does not release Python's lock (see `socket_send.py`).
        self._call: Any = ctypes.PyDLL(None, use_errno=True).syscall
        setup = IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN
        asked = _PARAMS.pack(0, 0, setup, *[0] * 25)
        params = ctypes.create_string_buffer(asked, _PARAMS.size)
        self._fd = self._call(NR_IO_URING_SETUP, ENTRIES, params)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"io_uring: {os.strerror(number)}")
        self._map(_PARAMS.unpack(params.raw), flags)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _map(self, params: Sequence[int], flags: int) -> None:
        sq_entries, self._cq_entries, *_ = params
        features = params[5]
        if sq_entries != ENTRIES or not features & IORING_FEAT_SINGLE_MMAP:
            raise OSError(errno.ENOSYS, "this version of io_uring is not supported")
        sq_head, sq_tail, _, _, _, _, sq_array, _, _ = params[10:19]  # struct io_sqring_offsets
        cq_head, cq_tail, _, _, _, cqes, _, _, _ = params[19:28]  # struct io_cqring_offsets
        size = max(sq_array + 4 * sq_entries, cqes + _CQE.size * self._cq_entries)
        memory = memoryview(mmap.mmap(self._fd, -(-size // 8) * 8))
        words = memory.cast("I")
        self._sq_head, self._sq_tail = words[sq_head // 4 :], words[sq_tail // 4 :]
        self._cq_head, self._cq_tail = words[cq_head // 4 :], words[cq_tail // 4 :]
        # These never change: slot N of the queue refers to entry N, and every entry is a send.
        words[sq_array // 4 : sq_array // 4 + sq_entries] = array("I", range(sq_entries))
        sqes = memoryview(mmap.mmap(self._fd, _SQE.size * sq_entries, offset=IORING_OFF_SQES))
        for user_data in range(sq_entries):
            entry = (IORING_OP_SEND, 0, 0, -1, 0, 0, 0, flags, user_data)
            _SQE.pack_into(sqes, user_data * _SQE.size, *entry)
        # These change: the columns `fd`, `addr` and `len` of the entries.
        self._sqe_fd = sqes.cast("i")[1::16]
        self._sqe_addr = sqes.cast("Q")[2::8]
        self._sqe_len = sqes.cast("I")[6::16]
        self._cqes = memory[cqes : cqes + _CQE.size * self._cq_entries]
        self._cqe_user_data = self._cqes.cast("Q")[::2]
        self._cqe_res = self._cqes.cast("i")[2::4]
        # The bytes of the completions if every send was complete, in order.
        self._complete = bytearray(self._cqes.nbytes)
        for number in range(self._cq_entries):
            _CQE.pack_into(self._complete, number * _CQE.size, number % sq_entries, 0, 0)
        self._complete_res = memoryview(self._complete).cast("i")[2::4]

    def send_all(self, descriptors: "array[int]", data: bytes) -> dict[int, int]:
        """Send the same bytes to many sockets, in their order.

        Return the number of sent bytes for each socket that did not take all, by its index in
        `descriptors`; a negative number means that nothing was sent.
        """
        if data is not self._data:
            self._set_payload(data)
        parts: dict[int, int] = {}
        for start in range(0, len(descriptors), ENTRIES):
            for index, part in self._send(descriptors[start : start + ENTRIES]).items():
                parts[start + index] = part
        return parts

    def _set_payload(self, data: bytes) -> None:
        """Make all entries send this payload from now on."""
        self._data = data
        self._address = array("Q", [ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0])
        if len(data) != self._size:
            self._size = len(data)
            self._sqe_len[:] = array("I", [len(data)]) * ENTRIES
            self._complete_res[:] = array("i", [len(data)]) * self._cq_entries

    def _send(self, descriptors: "array[int]") -> dict[int, int]:
        count, tail = len(descriptors), self._sq_tail[0]
        first = tail % ENTRIES
        room = ENTRIES - first
        over = max(count - room, 0)
        self._sqe_fd[first : first + count] = descriptors[:room]
        self._sqe_fd[:over] = descriptors[room:]
        # Set here and not in `_set_payload`, so that a few sends do not touch the whole ring.
        self._sqe_addr[first : first + count] = self._address * (count - over)
        self._sqe_addr[:over] = self._address * over
        self._sq_tail[0] = (tail + count) % _WRAP
        self._enter(count, count)
        taken = (self._sq_head[0] - tail) % _WRAP
        if taken != count:  # out of memory: entries that were not taken must not be sent later
            self._sq_tail[0] = self._sq_head[0]
        parts = self._parts(taken, count, first)
        self._cq_head[0] = (self._cq_head[0] + taken) % _WRAP
        return parts

    def _parts(self, taken: int, count: int, first: int) -> dict[int, int]:
        """Wait for `taken` completions; return the results of incomplete sends by index."""
        head = self._cq_head[0]
        while (self._cq_tail[0] - head) % _WRAP < taken:
            self._enter(0, taken)  # not seen in practice: all are complete at once
        start = head % self._cq_entries
        over = max(start + taken - self._cq_entries, 0)
        spans = [(start, start + taken - over), (0, over)]
        # Comparing all at once takes a tenth of the time.
        if taken == count and all(self._are_complete(*span) for span in spans):
            return {}
        parts = dict.fromkeys(range(count), -1)
        for begin, end in spans:
            for number, result in zip(
                self._cqe_user_data[begin:end], self._cqe_res[begin:end], strict=True
            ):
                index = (number - first) % ENTRIES
                if result == self._size:
                    del parts[index]
                else:
                    parts[index] = result
        return parts

    def _are_complete(self, begin: int, end: int) -> bool:
        """Whether completions are in order, and each send was complete."""
        span = slice(_CQE.size * begin, _CQE.size * end)
        return self._cqes[span].tobytes() == self._complete[span]

    def _enter(self, submit: int, wait: int) -> None:
        # The result is not needed: heads and tails show what was done, even after an error.
        self._call(NR_IO_URING_ENTER, self._fd, submit, wait, IORING_ENTER_GETEVENTS, None, 0)
