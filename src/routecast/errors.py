"""Every error Routecast raises on purpose, and what the caller should do about it."""


class RoutecastError(Exception):
    """The base of all errors whose text may be shown to a user."""


class BadParameter(RoutecastError):
    """A request parameter is wrong. Tell the client which one; trying again will not help."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter}: {message}")
        self.parameter = parameter
        self.message = message


class NotFound(RoutecastError):
    """There is nothing at this path."""


class Forbidden(RoutecastError):
    """Policy does not let this client in. Trying again will not help."""


class BadHead(RoutecastError):
    """The header fields of a request break a rule of HTTP. Nothing of it was done."""


class Misdirected(RoutecastError):
    """A request is for a host that this server does not answer for. Trying again will not help."""


class BadBody(RoutecastError):
    """A request body cannot be read at all. Nothing of it was kept."""


class TooLarge(RoutecastError):
    """A request is over a size limit. Nothing of it was kept; send smaller pieces."""


class Invalid(RoutecastError):
    """One decision breaks a rule. The others of its batch are not affected."""


class Unavailable(RoutecastError):
    """An engine cannot answer now. Try again after `retry_after` seconds.

    Nothing was kept, unless the text says that it may have been.
    """

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InUse(RoutecastError):
    """A database is in use, and what was asked for needs it alone. Nothing was changed."""


class Damaged(RoutecastError):
    """A database or a backup is damaged. Nothing was changed."""


class Declined(Unavailable):
    """An engine answers, but not this: it has no memory left, or does not allow the command."""


class SumFull(RoutecastError):
    """Names cannot be folded: a sum of `other` would be over its limit. Nothing was changed."""


class Refused(RoutecastError):
    """A server does not want this client as it is. Trying again will not help.

    `code` is the close code of the stream, or the status of the HTTP answer.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Unauthenticated(Refused):
    """No token, a bad or an expired one (4401, 401). Come back with a new one."""


class BadRequest(RoutecastError):
    """A server cannot serve one subscription or history; others on the connection go on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class MissingDeltas(RoutecastError):
    """A delta does not follow the position held. Load the rollups again; never guess."""


class NotHeld(RoutecastError):
    """A range reaches past the periods that are held. Load again, or ask for longer periods."""


class BadSettings(RoutecastError):
    """The configuration cannot work. The text names the setting and the fix."""


class BadDatabase(BadSettings):
    """What the database URL points at is not ours to use (another file, a newer schema)."""
