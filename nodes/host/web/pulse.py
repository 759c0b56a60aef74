"""A function that is called at most so often, however often there is a reason to."""

import threading
import time
from collections.abc import Callable


def _later(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True  # a server that ends does not wait for it
    timer.start()


class Pulse:
    """Calls `send` at most once in `seconds`; what comes in between is one call at the end of them.

    clock: seconds that never go back; later: calls a function after so many seconds
    """

    def __init__(
        self, send: Callable[[], None], seconds: float, clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] = _later,
    ):  # fmt: skip
        self.send, self.seconds, self.clock, self.later = send, seconds, clock, later
        self._last = -float("inf")
        self._is_waiting = False
        self._lock = threading.RLock()  # over `send` too: what is sent later was said later

    def want(self) -> None:
        """There is a reason to send."""
        with self._lock:
            if self._is_waiting:
                return
            left = self._last + self.seconds - self.clock()
            if left <= 0:
                self.now()
            else:
                self._is_waiting = True
                self.later(left, self._in_time)

    def now(self) -> None:
        """Send at once; what was waiting is sent with it."""
        with self._lock:
            self._is_waiting = False
            self._last = self.clock()
            self.send()

    def _in_time(self) -> None:
        with self._lock:
            if self._is_waiting:
                self.now()
