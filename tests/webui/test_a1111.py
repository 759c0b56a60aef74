"""AUTOMATIC1111's WebUI: tags change weights exactly, and nothing is left of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.webui.fakes.hosts_lora import CHECKOUT, HostsLora
from tests.webui.fakes.lora import OwnLora
from tests.webui.fakes.webui import running
from tests.webui.scenarios import SCENARIOS, STEPS, Files, play

needs_checkout = pytest.mark.skipif(CHECKOUT is None, reason="A1111_DIR (a checkout of 1.10.1) is not set")
_IN_HALF = ("several", "with a LoRA", "another checkpoint")
_CASES = [pytest.param(name, torch.float32, id=name) for name in SCENARIOS]
_CASES += [pytest.param(name, dtype, id=f"{name}, {dtype}", marks=pytest.mark.bits)
           for name in _IN_HALF for dtype in (torch.float16, torch.bfloat16)]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), _CASES)
def test_weights_are_the_references(tmp_path, name, dtype):
    with running(tmp_path, dtype, lora_extension=OwnLora) as webui:
        play(webui, SCENARIOS[name], Files(webui))


@needs_checkout
@pytest.mark.parametrize(("name", "dtype"), _CASES)
def test_weights_are_the_references_with_the_hosts_own_files(tmp_path, name, dtype):
    with running(tmp_path, dtype, lora_extension=HostsLora) as webui:
        play(webui, SCENARIOS[name], Files(webui))


@given(st.lists(STEPS, min_size=2, max_size=6), st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_any_sequence_of_steps(tmp_path_factory, steps, models_in_memory):
    with running(tmp_path_factory.mktemp("webui"), lora_extension=OwnLora) as webui:
        webui.limit = models_in_memory
        play(webui, steps, Files(webui))
