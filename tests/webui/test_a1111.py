"""AUTOMATIC1111's WebUI: tags change weights exactly, and nothing is left of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.webui.fakes.hosts_lora import CHECKOUT, HostsLora
from tests.webui.fakes.lora import OwnLora
from tests.webui.fakes.webui import running
from tests.webui.scenarios import SCENARIOS, Draw, Fail, Files, ReloadUI, Rewrite, TakeOff, play

needs_checkout = pytest.mark.skipif(CHECKOUT is None, reason="A1111_DIR (a checkout of 1.10.1) is not set")
_IN_HALF = ("several", "with a LoRA", "another checkpoint")
_CASES = [pytest.param(name, torch.float32, id=name) for name in SCENARIOS]
_CASES += [pytest.param(name, dtype, id=f"{name}, {dtype}", marks=pytest.mark.bits)
           for name in _IN_HALF for dtype in (torch.float16, torch.bfloat16)]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), _CASES)
def test_weights_are_the_references(tmp_path, name, dtype):
    with running(tmp_path, dtype, lora_extension=OwnLora) as webui:
        play(webui, SCENARIOS[name], Files(webui))


_TAGS = st.sampled_from([f"<{kind}:{name}{strength}>" for kind, names in (
    ("sara", ("alpha", "beta", "gamma")), ("lora", ("alpha", "beta", "plain", "other")),
) for name in names for strength in (":1", ":0.8", ":-0.5", ":0:1")])  # fmt: skip
_PROMPTS = st.lists(_TAGS, max_size=3, unique_by=lambda tag: tag.split(":")[1]).map(" ".join)
_CHECKPOINTS = st.sampled_from([None, None, None, "one", "two"])
_STEPS = st.one_of(
    st.builds(Draw, _PROMPTS, checkpoint=_CHECKPOINTS),
    st.builds(Draw, _PROMPTS, n_iter=st.integers(1, 2), hr=_PROMPTS, hr_checkpoint=_CHECKPOINTS, lowvram=st.booleans()),
    st.builds(Rewrite, st.sampled_from(["alpha", "beta"]), st.sampled_from(["alpha", "beta", "gamma"])),
    st.sampled_from([Fail("<sara:alpha:1> <lora:plain:1>"), ReloadUI(), TakeOff()]),
)


@needs_checkout
@pytest.mark.parametrize(("name", "dtype"), _CASES)
def test_weights_are_the_references_with_the_hosts_own_files(tmp_path, name, dtype):
    with running(tmp_path, dtype, lora_extension=HostsLora) as webui:
        play(webui, SCENARIOS[name], Files(webui))


@given(st.lists(_STEPS, min_size=2, max_size=6), st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_any_sequence_of_steps(tmp_path_factory, steps, models_in_memory):
    with running(tmp_path_factory.mktemp("webui"), lora_extension=OwnLora) as webui:
        webui.limit = models_in_memory
        play(webui, steps, Files(webui))
