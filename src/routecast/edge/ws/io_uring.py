"""io_uring(7), as far as a broadcast needs it: many sends in one system call.

After a system call for each socket, what the way to the next one needs has left the processor's
caches. With io_uring the kernel is told of all sockets at once, and goes from one to the next by
itself.

Every send has MSG_DONTWAIT, so it is over when the call comes back. No memory has to be kept for a
send that is under way, and nothing of this runs in the event loop.

**Memory ordering.** The rings are shared with the kernel, and Python has no memory barriers. None
are needed here: there is no kernel thread that polls the submission queue (IORING_SETUP_SQPOLL), so
the kernel reads it only within `io_uring_enter`, which the thread that wrote it calls afterwards;
and with IORING_SETUP_DEFER_TASKRUN it writes completions only within that call, too, in the context
of the same thread. All accesses are of one thread, in its program order.
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

# Entries of the submission queue: at most this number of sends is one system call; a power of two.
ENTRIES: Final = 512

# Names and values are those of <linux/io_uring.h>. The numbers of the system calls are the same on
# these machines.
_MACHINES: Final = frozenset({"x86_64", "aarch64"})
NR_IO_URING_SETUP: Final = 425
NR_IO_URING_ENTER: Final = 426
IORING_SETUP_SUBMIT_ALL: Final = 1 << 7  # one bad socket does not hold up those behind it
IORING_SETUP_SINGLE_ISSUER: Final = 1 << 12  # the ring is one thread's, which spares locks
IORING_SETUP_DEFER_TASKRUN: Final = 1 << 13
IORING_FEAT_SINGLE_MMAP: Final = 1 << 0
IORING_ENTER_GETEVENTS: Final = 1 << 0
IORING_OP_SEND: Final = 26
IORING_OFF_SQES: Final = 0x1000_0000
_PARAMS: Final = struct.Struct("=10I 8IQ 8IQ")  # struct io_uring_params
_SQE: Final = struct.Struct("=BBHiQQIIQ24x")  # struct io_uring_sqe
_CQE: Final = struct.Struct("=QiI")  # struct io_uring_cqe
_WRAP: Final = 2**32  # heads and tails count on, and wrap


class IoUringSender:
    """A ring of sends with the same flags, MSG_DONTWAIT among them.

    For one thread of one process. Raises OSError where the kernel has no io_uring that is known
    here (before Linux 6.1), or forbids it.
    """

    _fd = -1
    _data: bytes | None = None  # the payload, which stays alive while the ring refers to it
    _address = array("Q", [0])
    _size = -1

    def __init__(self, flags: int) -> None:
        if sys.platform != "linux" or platform.machine() not in _MACHINES:
            raise OSError(errno.ENOSYS, "no io_uring is known for this platform")
        # It keeps Python's lock, as `send` does.
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
            raise OSError(errno.ENOSYS, "this io_uring is not known here")
        sq_head, sq_tail, _, _, _, _, sq_array, _, _ = params[10:19]  # struct io_sqring_offsets
        cq_head, cq_tail, _, _, _, cqes, _, _, _ = params[19:28]  # struct io_cqring_offsets
        size = max(sq_array + 4 * sq_entries, cqes + _CQE.size * self._cq_entries)
        memory = memoryview(mmap.mmap(self._fd, -(-size // 8) * 8))
        words = memory.cast("I")
        self._sq_head, self._sq_tail = words[sq_head // 4 :], words[sq_tail // 4 :]
        self._cq_head, self._cq_tail = words[cq_head // 4 :], words[cq_tail // 4 :]
        # What stays as it is: each place of the queue has an entry of its own, which is a send.
        words[sq_array // 4 : sq_array // 4 + sq_entries] = array("I", range(sq_entries))
        sqes = memoryview(mmap.mmap(self._fd, _SQE.size * sq_entries, offset=IORING_OFF_SQES))
        for user_data in range(sq_entries):
            entry = (IORING_OP_SEND, 0, 0, -1, 0, 0, 0, flags, user_data)
            _SQE.pack_into(sqes, user_data * _SQE.size, *entry)
        # What changes, by columns: `fd`, `addr` and `len` of each entry.
        self._sqe_fd = sqes.cast("i")[1::16]
        self._sqe_addr = sqes.cast("Q")[2::8]
        self._sqe_len = sqes.cast("I")[6::16]
        self._cqes = memory[cqes : cqes + _CQE.size * self._cq_entries]
        self._cqe_user_data = self._cqes.cast("Q")[::2]
        self._cqe_res = self._cqes.cast("i")[2::4]
        # How completions look when each send in turn took all there was.
        self._complete = bytearray(self._cqes.nbytes)
        for number in range(self._cq_entries):
            _CQE.pack_into(self._complete, number * _CQE.size, number % sq_entries, 0, 0)
        self._complete_res = memoryview(self._complete).cast("i")[2::4]

    def send_all(self, descriptors: "array[int]", data: bytes) -> dict[int, int]:
        """Send the same to many sockets, in their order.

        Return how many bytes were sent, for each socket that did not take all, by its place in
        `descriptors`; a negative value means that nothing was sent.
        """
        if data is not self._data:
            self._set_payload(data)
        parts: dict[int, int] = {}
        for start in range(0, len(descriptors), ENTRIES):
            for place, part in self._send(descriptors[start : start + ENTRIES]).items():
                parts[start + place] = part
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
        # Not of all entries beforehand, as long as the size is the same: a few sends need not touch
        # the whole ring.
        self._sqe_addr[first : first + count] = self._address * (count - over)
        self._sqe_addr[:over] = self._address * over
        self._sq_tail[0] = (tail + count) % _WRAP
        self._enter(count, count)
        taken = (self._sq_head[0] - tail) % _WRAP
        if taken != count:  # short of memory: the entries it left must not go with the next ones
            self._sq_tail[0] = self._sq_head[0]
        parts = self._parts(taken, count, first)
        self._cq_head[0] = (self._cq_head[0] + taken) % _WRAP
        return parts

    def _parts(self, taken: int, count: int, first: int) -> dict[int, int]:
        """Await `taken` completions; return what they say of sends that did not take all."""
        head = self._cq_head[0]
        while (self._cq_tail[0] - head) % _WRAP < taken:
            self._enter(0, taken)  # all were over at once until now; and if not, they will be
        start = head % self._cq_entries
        over = max(start + taken - self._cq_entries, 0)
        spans = [(start, start + taken - over), (0, over)]
        # To compare all at once takes a tenth of the time.
        if taken == count and all(self._are_complete(*span) for span in spans):
            return {}
        parts = dict.fromkeys(range(count), -1)
        for begin, end in spans:
            for number, result in zip(
                self._cqe_user_data[begin:end], self._cqe_res[begin:end], strict=True
            ):
                place = (number - first) % ENTRIES
                if result == self._size:
                    del parts[place]
                else:
                    parts[place] = result
        return parts

    def _are_complete(self, begin: int, end: int) -> bool:
        """Whether completions are in turn, and each send took all."""
        span = slice(_CQE.size * begin, _CQE.size * end)
        return self._cqes[span].tobytes() == self._complete[span]

    def _enter(self, submit: int, wait: int) -> None:
        # Heads and tails tell what came of it, errors or not.
        self._call(NR_IO_URING_ENTER, self._fd, submit, wait, IORING_ENTER_GETEVENTS, None, 0)
