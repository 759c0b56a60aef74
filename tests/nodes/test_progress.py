"""What nodes show while they work: the bar moves as far as the work has come, and Cancel ends it."""

import pytest


@pytest.fixture
def bar(comfy, monkeypatch):
    """What the host's bar was told: (done, total), …"""
    from comfy import utils

    told = []
    monkeypatch.setattr(utils.ProgressBar, "update_absolute", lambda self, done, total: told.append((done, total)))
    return told


def test_the_bar_is_told_what_is_done(comfy, bar):
    on_progress = comfy.pack_module("nodes.host.progress").shown_progress()
    on_progress(1, 3)
    on_progress(3, 3)
    assert bar == [(1, 3), (3, 3)]


def test_cancel_ends_the_work_at_the_next_step(comfy, bar):
    from comfy import model_management

    on_progress = comfy.pack_module("nodes.host.progress").shown_progress()
    on_progress(1, 3)
    model_management.interrupt_current_processing(True)
    with pytest.raises(model_management.InterruptProcessingException):
        on_progress(2, 3)
    assert bar == [(1, 3)]
