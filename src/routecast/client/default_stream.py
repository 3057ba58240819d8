"""The default stream: the query that asks for a view, and the documents that arrive."""

from typing import Any

import msgspec

from routecast.client.document import ReceivedDocument
from routecast.client.session import SubscribedView
from routecast.patch import without_nulls
from routecast.protocol import ErrorOut, Filters, Subscribe


def query_of(asked: Subscribe) -> list[tuple[str, str]]:
    """Return a subscription as query parameters."""
    query = [] if asked.fields is None else [("fields", ",".join(asked.fields))]
    if asked.interval is not None:
        query.append(("interval", f"{asked.interval:g}"))
    if asked.window is not None:
        query.append(("window", asked.window))
    filters = msgspec.structs.asdict(asked.filter or Filters())
    return query + [(name, value) for name, values in filters.items() for value in values or ()]


def receive(view: SubscribedView, text: bytes) -> None:
    """Give a view one document, without the keys that are null, as in routecast.v1."""
    document = msgspec.json.decode(text, type=dict[str, Any])
    timestamp = document.pop("timestamp", "")
    if error := document.get("error"):
        view.failure = ErrorOut(id=view.id, code="unavailable", message=error, retryable=True)
    else:
        view.show(ReceivedDocument(without_nulls(document), timestamp))
