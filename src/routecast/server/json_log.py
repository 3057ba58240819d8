"""The log as JSON: one object on each line, for programs that collect logs."""

import json
import logging
import math
import sys
import threading
from datetime import UTC, datetime
from typing import Any, Final, Literal

from routecast import audit

LogFormat = Literal["text", "json"]

TEXT_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# A longer text is cut: collectors drop or split lines that are too long.
MAX_TEXT: Final = 8_192
# Uvicorn's loggers have handlers of their own, if its command runs the application.
_LOGGERS_WITH_HANDLERS: Final = (None, "uvicorn", "uvicorn.error")
# Its access log has query strings, in which clients put credentials by mistake.
_ACCESS_LOG: Final = "uvicorn.access"
# Uvicorn logs an unexpected error while it answers the request.
_LOGGERS_OF_REQUESTS: Final = frozenset({"uvicorn.error"})


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON in ASCII.

    So no text of a client can begin a line, or be taken for a field of ours.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, whatever the record contains."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        line.update(audit.fields_of(record))
        if record.name in _LOGGERS_OF_REQUESTS:
            line.update(audit.trace_fields())
        if trace := _traceback(self, record):
            line["traceback"] = trace
        return json.dumps(_cut(line), separators=(",", ":"), default=str)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the arguments do not fit the text
        return str(record.msg)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    # `exc_text` is what another handler's formatter has made of the same exception.
    if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    stack = formatter.formatStack(record.stack_info) if record.stack_info else ""
    return "\n".join(filter(None, (record.exc_text, stack)))


def _cut(value: Any) -> Any:
    """Return a value that JSON can hold: texts are cut, and of valid Unicode."""
    match value:
        case str():
            text = value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}…"
            # `isascii` is fast, and most texts are.
            return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
        case dict():
            return {str(name): _cut(each) for name, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_cut(each) for each in value]
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int():
            return value
    return _cut(str(value))


def start_log(level: str, form: LogFormat) -> None:
    """Log to stderr from now on. In JSON, with the events of the audit log."""
    logging.basicConfig(level=level.upper(), format=TEXT_FORMAT)
    if form == "text":
        return
    for name in _LOGGERS_WITH_HANDLERS:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(JsonFormatter())
    logging.getLogger(_ACCESS_LOG).disabled = True
    # Below that, it logs the path and the query of each WebSocket.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    audit.listen()
    # What Python itself would print as text.
    logging.captureWarnings(True)
    threading.excepthook = _log_thread


def _log_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and not issubclass(failed.exc_type, SystemExit):
        info = failed.exc_type, failed.exc_value, failed.exc_traceback
        logging.getLogger("routecast").error("A thread failed", exc_info=info)
    sys.stderr.flush()
