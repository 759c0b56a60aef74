"""One line per step, with the time since the start, on standard error: standard output is for results."""

import sys
import time


class Progress:
    """Reports what a long command is doing.

    On a terminal ``update`` rewrites its line; elsewhere it prints a new one only every ``interval`` seconds,
    so that a log stays readable.
    """

    def __init__(self, stream=None, interval: float = 10.0):
        self._stream = stream or sys.stderr
        self._interval = interval
        self._start = time.monotonic()
        self._last_update = float("-inf")
        self._open_line_length = 0

    @property
    def elapsed(self) -> float:
        """Seconds since this report began."""
        return time.monotonic() - self._start

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._end_open_line()
        print(self._line(text), file=self._stream, flush=True)

    def update(self, text: str) -> None:
        """Show where a running step is."""
        if self._stream.isatty():
            line = self._line(text)
            print("\r" + line.ljust(self._open_line_length), end="", file=self._stream, flush=True)
            self._open_line_length = len(line)
        elif time.monotonic() - self._last_update >= self._interval:
            self._last_update = time.monotonic()
            print(self._line(text), file=self._stream, flush=True)

    def _line(self, text: str) -> str:
        minutes, seconds = divmod(int(self.elapsed), 60)
        return f"[{minutes:3d}:{seconds:02d}] {text}"

    def _end_open_line(self) -> None:
        if self._open_line_length:
            print(file=self._stream)
            self._open_line_length = 0
