"""Forge and its kin: tags change weights exactly, and nothing is left of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.webui.fakes.forge import forge_running
from tests.webui.fakes.forge_patchers import Classic, Forge, Neo, ReForge
from tests.webui.scenarios import SCENARIOS, STEPS, Files, play

pytestmark = pytest.mark.bits

_NOT_HERE = ("the old way",)  # an option that these do not have
_IN_HALF = ("several", "with a LoRA", "another checkpoint")
_HOSTS = [Neo, Forge, ReForge, Classic]
_CASES = [(name, torch.float32) for name in SCENARIOS if name not in _NOT_HERE]
_CASES += [(name, dtype) for name in _IN_HALF for dtype in (torch.float16, torch.bfloat16)]


@pytest.mark.parametrize("rules", _HOSTS, ids=lambda rules: rules.name)
@pytest.mark.parametrize(("name", "dtype"), _CASES, ids=str)
def test_weights_are_the_references(tmp_path, rules, name, dtype):
    with forge_running(tmp_path, rules(), dtype) as webui:
        assert webui.host().name == rules.name
        play(webui, SCENARIOS[name], Files(webui))


@given(st.lists(STEPS, min_size=2, max_size=6), st.sampled_from(_HOSTS))
@settings(max_examples=25, deadline=None)
def test_any_sequence_of_steps(tmp_path_factory, steps, rules):
    with forge_running(tmp_path_factory.mktemp("webui"), rules()) as webui:
        play(webui, steps, Files(webui))
