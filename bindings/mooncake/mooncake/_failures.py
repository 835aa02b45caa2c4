"""How a call that fails tells it: a number, one line of the log, and last_error()."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import kvferry
from mooncake._metadata import MetadataError

FAILED = -1
UNKNOWN_REGION = -3
OVERLAP = -7
# What register_memory() returns for kvferry's codes.
REGISTER_CODES = {"already_exists": OVERLAP}

LOGGER = logging.getLogger("mooncake")
Value = TypeVar("Value")


class Refused(Exception):
    """A call that fails for a reason of this package's own, not of kvferry."""

    def __init__(self, why: str, status: int = FAILED) -> None:
        super().__init__(why)
        self.status = status


FAILURES = (Refused, kvferry.Error, MetadataError, ValueError, OverflowError, OSError)


class Reporter:
    """Thread-safe."""

    def __init__(self) -> None:
        self._errors = threading.local()
        self._latest_error = ""

    def last_error(self) -> str:
        """Why the last call of this thread that failed did so; that of any thread, where none of this one has."""
        return str(getattr(self._errors, "latest", self._latest_error))

    def _fail(self, what: str, why: str) -> int:
        self._errors.latest = self._latest_error = f"{what} failed: {why}"
        LOGGER.warning("%s", self._errors.latest)
        return FAILED

    def _status(self, what: str, work: Callable[[], None], codes: Mapping[str, int] | None = None) -> int:
        """`codes`: what to return for kvferry's codes instead of FAILED."""
        try:
            work()
        except FAILURES as error:
            self._fail(what, str(error))
            if isinstance(error, Refused):
                return error.status
            return (codes or {}).get(getattr(error, "code", ""), FAILED)
        return 0

    def _value(self, what: str, work: Callable[[], Value], otherwise: Value) -> Value:
        try:
            return work()
        except FAILURES as error:
            self._fail(what, str(error))
            return otherwise
