"""All errors that Routecast raises on purpose, and what the caller should do after each."""


class RoutecastError(Exception):
    """The base of all errors of Routecast. Their text may be shown to users."""


class BadParameter(RoutecastError):
    """A parameter is invalid. Tell the client which one; a retry does not help.

    Attributes:
        parameter: The name of the parameter.
        message: What is wrong with it, without its name.

    Examples:
        >>> try:
        ...     Recorder("ftp://metrics.example")
        ... except BadParameter as error:
        ...     print(error.parameter)
        url
    """

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter}: {message}")
        self.parameter = parameter
        self.message = message


class CredentialInUrl(BadParameter):
    """A credential is in a URL, where others may read it later."""


class NotFound(RoutecastError):
    """There is nothing at this path."""


class Forbidden(RoutecastError):
    """The policy refuses this client. A retry does not help."""


class MissingScope(Forbidden):
    """The credential is valid, but does not allow this.

    Attributes:
        scope: The scope that is missing.
    """

    def __init__(self, scope: str) -> None:
        super().__init__(f"this needs the scope `{scope}`, which the credential does not have")
        self.scope = scope


class BadCredential(RoutecastError):
    """A request has no credential, or one that is not valid. A retry needs another one.

    Attributes:
        invalid: Whether there was a credential.
    """

    def __init__(self, message: str, *, invalid: bool = True) -> None:
        super().__init__(message)
        self.invalid = invalid


class BadChange(RoutecastError):
    """A change of API keys or revocations breaks a rule. Nothing was changed."""


class BadHead(RoutecastError):
    """The header fields of a request break a rule of HTTP. The request had no effect."""


class Misdirected(RoutecastError):
    """The request is for a host that this server does not serve. A retry does not help."""


class BadBody(RoutecastError):
    """A request body cannot be read at all. No decision of it was kept."""


class TooLarge(RoutecastError):
    """A request is over a size limit. No decision of it was kept; send smaller requests."""


class Invalid(RoutecastError):
    """One decision breaks a rule. The other decisions of its batch are not affected."""


class Unavailable(RoutecastError):
    """An engine or a server cannot answer now. Try again later.

    No decision was kept, unless the text says that some may have been.

    Attributes:
        retry_after: The minimum time before the next attempt, in seconds; default 1.
    """

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OverLimit(Unavailable):
    """A client is over a limit of its own. Try again later; nothing was done.

    Attributes:
        limit: The name of the limit.
        amount: The limit.
        seconds: The time in which the amount is counted; None for what is open at a time.
    """

    def __init__(
        self, message: str, *, limit: str, amount: int, seconds: int | None, retry_after: int
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.limit = limit
        self.amount = amount
        self.seconds = seconds


class InUse(RoutecastError):
    """Another program uses a database that must not be in use now. Nothing was changed."""


class Damaged(RoutecastError):
    """A database or a backup is damaged. Nothing was changed."""


class Declined(Unavailable):
    """An engine answers, but refuses: it is out of memory, or forbids the command."""


class SumFull(RoutecastError):
    """Names cannot be folded: a sum of `other` would be over its limit. Nothing was changed."""


class Refused(RoutecastError):
    """A server refuses this client as it is. A retry does not help.

    Attributes:
        code: The close code of the stream, or the status of the HTTP answer.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Unauthenticated(Refused):
    """The token or API key is missing, invalid or expired (4401, 401). Give a new one."""


class BadRequest(RoutecastError):
    """A server cannot serve one subscription or history; others on the connection continue.

    Attributes:
        code: The error code of routecast.v1, such as `bad_request` or `too_many`; `unsupported` for
            a history of a server that has the default stream only.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class MissingDeltas(RoutecastError):
    """A delta does not follow the position of the state. Load the state again."""


class NotHeld(RoutecastError):
    """A range needs minutes or hours that are not held. Load again, or use longer periods."""


class BadSettings(RoutecastError):
    """The configuration cannot work. The text names the setting and the fix."""


class BadDatabase(BadSettings):
    """The database of the URL cannot be used: another program's file, or a newer schema."""
