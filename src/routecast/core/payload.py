"""Payload: bytes that many clients are sent, and the forms that edges make of them."""


class Payload:
    """One message for many clients.

    `body` is the message before any framing, UTF-8 unless it is `binary`. `forms` holds what edges
    made of it: framed, compressed, as an event. The first connection that needs a form makes it;
    all others find it there.
    """

    __slots__ = ("binary", "body", "forms")

    def __init__(self, body: bytes, *, binary: bool = False) -> None:
        self.body = body
        self.binary = binary
        # By a name that the edge chose, or the number of the `SentMessage` it is compressed after.
        self.forms: dict[str | int, bytes] = {}
