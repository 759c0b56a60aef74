"""How a training on the command line is asked to stop: the first time after a whole step, the second at once."""

import signal

import pytest

from sara_core.commands.train import _stop_requests


class Ended(Exception):
    """What the handler from before does."""


def end(number, frame):
    raise Ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "the system's request"])
def test_the_first_request_is_noted_and_the_second_ends_at_once(number):
    others = signal.signal(number, end)
    try:
        with _stop_requests() as stop:
            assert not stop.requested
            signal.raise_signal(number)
            assert stop.requested
            with pytest.raises(Ended):
                signal.raise_signal(number)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, others)
