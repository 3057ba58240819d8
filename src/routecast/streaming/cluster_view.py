"""The operator's view of a whole cluster: one node asks the others for their part of an answer.

Lists are not sent around: a node answers when it is asked, by what nodes share (`ports.Cluster`).
Nodes that do not answer in time are named in the answer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from routecast.core.connection_pages import NodePage, merge_pages
from routecast.core.connections_query import ConnectionsQuery
from routecast.errors import NotFound, Unavailable
from routecast.ports import Cluster
from routecast.protocol import (
    ClosedConnection,
    ClosedConnections,
    Expelled,
    OpenConnection,
    OpenConnections,
)
from routecast.streaming.operator_view import OperatorView

# The time for the answers of other nodes, in seconds.
OTHERS_SECONDS: Final = 1.5
# Questions of this node that wait for answers at a time.
MAX_ASKING: Final = 16
# After a failure, the next questions are read this number of seconds later.
READ_AGAIN_SECONDS: Final = 1.0
# Characters shown of the name of a node that does not exist.
MAX_SHOWN: Final = 40


class _Question(msgspec.Struct, frozen=True):
    """What one node asks others, or only the one that `node` names."""

    asker: str
    kind: Literal["opened", "closed", "expel", "expel_all"]
    node: str | None = None
    query: ConnectionsQuery | None = None
    target: str = ""  # the id of a connection, or a subject
    may_return: bool = False


class _Closing(msgspec.Struct, frozen=True):
    """The number of streams that a node is closing."""

    node: str
    count: int


class _OfNode(Protocol):
    """The answer of a node."""

    @property
    def node(self) -> str:
        """Its name."""
        ...


AnswerType = TypeVar("AnswerType", bound=_OfNode)
_encode: Final = msgspec.msgpack.Encoder().encode
_read_question: Final = msgspec.msgpack.Decoder(_Question).decode
_read_opened: Final = msgspec.msgpack.Decoder(NodePage[OpenConnection]).decode
_read_closed: Final = msgspec.msgpack.Decoder(NodePage[ClosedConnection]).decode
_read_closing: Final = msgspec.msgpack.Decoder(_Closing).decode


class ClusterView:
    """Lists and closes the connections of all nodes. Run `run` as a task to answer other nodes.

    `others` returns the names of the other nodes, and raises Unavailable if they are not known.
    """

    def __init__(
        self,
        view: OperatorView,
        cluster: Cluster,
        others: Callable[[], Awaitable[frozenset[str]]],
    ) -> None:
        self._view = view
        self._cluster = cluster
        self._others = others
        self._asking = 0

    # -- asking ---------------------------------------------------------------------------------

    async def opened(self, query: ConnectionsQuery) -> OpenConnections:
        """Return a page of the open connections."""
        question = _Question(self._view.node, "opened", query.node, query)
        ours, (pages, missing) = await self._both(
            query.node, self._view.opened(query), question, _read_opened
        )
        page = merge_pages([*ours, *pages], query.limit)
        following = None if page.next is None else str(page.next)
        return OpenConnections(self._view.node, page.total, following, page.connections, missing)

    async def closed(self, query: ConnectionsQuery) -> ClosedConnections:
        """Return a page of the closed connections, the newest first."""
        question = _Question(self._view.node, "closed", query.node, query)
        ours, (pages, missing) = await self._both(
            query.node, self._view.closed(query), question, _read_closed
        )
        page = merge_pages([*ours, *pages], query.limit)
        following = None if page.next is None else str(page.next)
        return ClosedConnections(self._view.node, page.total, following, page.connections, missing)

    async def expel(self, identity: str, *, may_return: bool) -> None:
        """Close a connection, wherever it is.

        Raises NotFound if no node has it, Unavailable if that is unknown.
        """
        if self._view.expel(identity, may_return=may_return):
            return
        question = _Question(self._view.node, "expel", target=identity, may_return=may_return)
        closing, missing = await self._ask(question, _read_closing)
        if any(each.count for each in closing):
            return
        if missing is not None:
            raise Unavailable(f"the connection may be on another node, and {missing}")
        raise NotFound("no node has an open connection with this id")

    async def expel_all(self, subject: str, *, may_return: bool) -> Expelled:
        """Close all connections of a subject."""
        question = _Question(self._view.node, "expel_all", target=subject, may_return=may_return)
        count, (closing, missing) = await asyncio.gather(
            self._view.expel_all(subject, may_return=may_return),
            self._ask(question, _read_closing),
        )
        return Expelled(count + sum(each.count for each in closing), missing)

    async def _both(
        self,
        node: str | None,
        ours: Awaitable[AnswerType],
        question: _Question,
        read: Callable[[bytes], AnswerType],
    ) -> tuple[list[AnswerType], tuple[list[AnswerType], str | None]]:
        """Return what this node answers, and what others do, unless only the other one is asked."""
        if node == self._view.node:
            return [await ours], ([], None)
        answer, others = await asyncio.gather(ours, self._ask(question, read))
        return [answer] if node is None else [], others

    async def _ask(
        self, question: _Question, read: Callable[[bytes], AnswerType]
    ) -> tuple[list[AnswerType], str | None]:
        """Return the answers of other nodes, and why there are not more of them."""
        try:
            others = await self._others()
            if question.node is not None:
                if question.node not in others:
                    return [], f"there is no node {question.node[:MAX_SHOWN]!r}"
                others = frozenset({question.node})
            if not others:
                return [], None
            if self._asking >= MAX_ASKING:
                raise Unavailable("too many lists are asked for at a time")
            self._asking += 1
            try:
                texts = await self._cluster.ask(_encode(question), len(others), OTHERS_SECONDS)
            finally:
                self._asking -= 1
        except Unavailable as error:
            return [], str(error)
        answers: dict[str, AnswerType] = {}
        for text in texts:
            with suppress(msgspec.DecodeError):  # of a node with another version
                answer = read(text)
                answers[answer.node] = answer
        silent = sorted(others - answers.keys())
        missing = f"these nodes do not answer: {', '.join(silent)}" if silent else None
        return [answers[name] for name in sorted(answers)], missing

    # -- answering ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer the questions of other nodes. Never ends."""
        while True:
            try:
                for name, text in await self._cluster.questions():
                    with suppress(msgspec.DecodeError):
                        await self._answer(name, _read_question(text))
            except Unavailable:
                await asyncio.sleep(READ_AGAIN_SECONDS)

    async def _answer(self, name: str, question: _Question) -> None:
        ours = self._view.node
        if question.asker == ours or question.node not in (None, ours):
            return
        target, may_return = question.target, question.may_return
        answer: msgspec.Struct
        match question.kind:
            case "opened":
                answer = await self._view.opened(question.query or ConnectionsQuery())
            case "closed":
                answer = await self._view.closed(question.query or ConnectionsQuery())
            case "expel":
                answer = _Closing(ours, int(self._view.expel(target, may_return=may_return)))
            case "expel_all":
                count = await self._view.expel_all(target, may_return=may_return)
                answer = _Closing(ours, count)
        await self._cluster.answer(name, await asyncio.to_thread(_encode, answer))
