"""Payload: bytes that many clients are sent, and the forms that edges make of them."""


class Payload:
    """One message for many clients.

    `body` is the message before any framing, UTF-8 unless it is `binary`. `forms` holds what edges
    made of it: framed, compressed, as an event. The first connection that needs a form makes it;
    all others find it there. `saved` are the bytes by which it is smaller because it has a patch
    and not the whole document.
    """

    __slots__ = ("binary", "body", "forms", "saved")

    def __init__(self, body: bytes, *, binary: bool = False, saved: int = 0) -> None:
        self.body = body
        self.binary = binary
        self.saved = saved
        # By a name that the edge chose, or the number of the `SentMessage` it is compressed after.
        self.forms: dict[str | int, bytes] = {}
