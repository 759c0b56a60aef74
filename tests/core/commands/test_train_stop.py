"""How a training on the command line is asked to stop: the first time after a whole step, the second at once."""

import signal

import pytest
import torch

from sara_core.commands.terminal import Terminal
from sara_core.training.processes import Processes


class Ended(Exception):
    """What the handler from before does."""


def end(number, frame):
    raise Ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "the system's request"])
def test_the_first_request_is_noted_and_the_second_ends_at_once(number):
    terminal, others = Terminal(Processes(0, 1, torch.device("cpu")), ""), signal.signal(number, end)
    try:
        with terminal.stops():
            assert not terminal.stop_requested()
            signal.raise_signal(number)
            assert terminal.stop_requested()
            with pytest.raises(Ended):
                signal.raise_signal(number)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, others)
