"""Renders: makes documents that take long, and decides which client pays for a document.

Documents of new views, and of views that fell far behind, are made one after the other, in slices
between which other tasks have a turn. Each client has a share of that time
(`core/render_budget.py`). The plain view, that of a stream without parameters, is free and comes
first.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Final, Protocol

from routecast.core.document import EncodedDocument
from routecast.core.render_budget import RenderBudget
from routecast.core.view import View
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.ports import Reading, Timers
from routecast.slices import Slices

log = logging.getLogger(__name__)

# The number of views that may wait to be rendered: of all clients, and of one. More are refused.
MAX_WAITING_VIEWS: Final = 256
MAX_WAITING_PER_CLIENT: Final = 64


class DocumentMaker(Protocol):
    """Makes documents (`metrics_reader.MetricsReader`)."""

    async def read(self) -> Reading:
        """Return the newest available state. Raises Unavailable if there is none at all."""
        ...

    def covering(self, reading: Reading, view: View) -> Reading | None:
        """Return a reading that covers a view, None if it is not available yet."""
        ...

    async def reading_for(self, view: View) -> Reading:
        """Wait for a reading that covers a view, and return it. Raises Unavailable."""
        ...

    def is_ready(self, reading: Reading, view: View) -> bool:
        """Do a slice of a view's work; return whether its document is ready."""
        ...

    async def encoded_documents(self, views: Mapping[View, str]) -> dict[View, EncodedDocument]:
        """Return the newest documents of the views that are ready."""
        ...


_Call = tuple[Callable[..., object], tuple[object, ...]]


class _RenderRequest:
    """A view to render, and the clients that wait for it: any of them may pay."""

    __slots__ = ("client", "clients", "done", "reads", "view")

    def __init__(self, view: View, client: str) -> None:
        self.view = view
        self.client = client  # the first one: the request counts towards its limit
        self.clients: dict[str, None] = {}  # in the order of their requests
        self.done: dict[_Call, None] = {}
        # The read of the view's window from the database; other requests are served meanwhile.
        self.reads: asyncio.Task[None] | None = None


class Renders:
    """Makes documents ready, in a fair order. Run `run` as a task.

    `used` returns the processor time that the calling thread has used, in seconds.
    """

    def __init__(
        self,
        documents: DocumentMaker,
        budget: RenderBudget,
        instruments: Instruments,
        timers: Timers,
        slices: Slices | None = None,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        self._documents = documents
        self._budget = budget
        self._instruments = instruments
        self._timers = timers
        self._slices = slices or Slices()
        self._used = used
        self._waiting: dict[View, _RenderRequest] = {}
        self._changed = asyncio.Event()
        self._is_resting = True  # False while a view is being made ready
        instruments.renders_waiting.set_function(lambda: len(self._waiting))

    @property
    def is_due(self) -> bool:
        """Whether a view is being made ready."""
        return not self._is_resting

    def payer(self, view: View, clients: Iterable[str]) -> tuple[str, float]:
        """Return the client that pays for a view's next render, and the seconds until it may.

        The plain view is free: its payer is "".
        """
        if view.plain:
            return "", 0.0
        return self._budget.first(clients, self._timers.now())

    def admit(self, view: View, client: str) -> None:
        """Raise Unavailable if a client has used up its rendering time."""
        _, wait = self.payer(view, (client,))
        if wait:
            raise Unavailable(
                "this address has used up its share of rendering time; ask for fewer different "
                "views, or less often",
                retry_after=ceil(wait),
            )

    @contextmanager
    def charged(self, payer: str) -> Iterator[None]:
        """Charge a payer for the processor time of the body, which must not await."""
        started = self._used()
        try:
            yield
        finally:
            if payer:
                self._budget.charge(payer, self._used() - started, self._timers.now())

    def request(self, view: View, client: str, done: Callable[..., object], *args: object) -> None:
        """Have a view made ready; `done(*args)` is called afterwards, even if that fails.

        Equal requests cause one call. Raises Unavailable if too many views wait.
        """
        request = self._waiting.get(view)
        if request is None:
            if not view.plain:
                self._check_room(client)
            request = self._waiting[view] = _RenderRequest(view, client)
        request.clients[client] = None
        request.done[done, args] = None
        self._changed.set()

    def withdraw(self, view: View, done: Callable[..., object], *args: object) -> None:
        """Withdraw a request: `done(*args)` is not called any more."""
        request = self._waiting.get(view)
        if request is not None:
            request.done.pop((done, args), None)

    def _check_room(self, client: str) -> None:
        theirs = sum(each.client == client for each in self._waiting.values())
        if len(self._waiting) >= MAX_WAITING_VIEWS or theirs >= MAX_WAITING_PER_CLIENT:
            wait = self._budget.wait(client, self._timers.now())
            raise Unavailable("too many views wait to be rendered", retry_after=ceil(wait) + 1)

    async def encoded_document(self, view: View, client: str) -> EncodedDocument:
        """Return a view's newest document. Raises Unavailable if the client asks for too much."""
        self.admit(view, client)
        payer, _ = self.payer(view, (client,))
        while view not in (found := await self._documents.encoded_documents({view: payer})):
            ready = asyncio.Event()
            self.request(view, client, ready.set)
            await ready.wait()
        return found[view]

    async def run(self) -> None:
        """Make views ready. Never ends."""
        self._is_resting = False
        while True:
            self._changed.clear()
            request, wait = self._next()
            if request is None or wait:
                await self._rest(wait)
                continue
            await self._make_ready(request)
            if request.reads is None:
                self._end(request)

    async def _rest(self, wait: float) -> None:
        """Return when a view is requested, or after `wait` seconds; 0.0 means no limit."""
        timer = None
        if wait:
            timer = self._timers.call_at(self._timers.now() + wait, self._changed.set)
        self._is_resting = True
        await self._changed.wait()
        self._is_resting = False
        if timer is not None:
            timer.cancel()

    def _end(self, request: _RenderRequest) -> None:
        del self._waiting[request.view]
        for done, args in request.done:
            done(*args)

    def _next(self) -> tuple[_RenderRequest | None, float]:
        """Return the request that may be served soonest, and the seconds until a client may pay."""
        chosen, least = None, 0.0
        for request in self._waiting.values():
            if request.reads is not None:
                continue
            if request.view.plain:
                return request, 0.0
            _, wait = self.payer(request.view, request.clients)
            if chosen is None or wait < least:
                chosen, least = request, wait
        return chosen, least

    async def _make_ready(self, request: _RenderRequest) -> None:
        try:
            while True:
                reading = self._documents.covering(await self._documents.read(), request.view)
                if reading is None:
                    request.reads = asyncio.create_task(self._read(request))
                    return
                payer, _ = self.payer(request.view, request.clients)
                with self.charged(payer):
                    ready = self._documents.is_ready(reading, request.view)
                await self._slices.turn()
                if ready:
                    return
        except Unavailable:
            pass  # clients get the error document
        except Exception:  # must not keep other views from being rendered
            log.exception("A view could not be rendered: %s", request.view)

    async def _read(self, request: _RenderRequest) -> None:
        """Read the window of a view; then the request is tried again."""
        try:
            await self._documents.reading_for(request.view)
        except Unavailable:
            self._end(request)
        finally:
            request.reads = None
            self._changed.set()
