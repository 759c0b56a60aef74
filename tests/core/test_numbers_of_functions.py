"""Every number that a public function takes is refused in words if it is none, and nothing is begun."""

import math

import pytest
import torch

import sara_core
from sara_core import SaRA, SparseDelta, SparseEntry, extract, learning_rate_for, merge, select
from sara_core.diffusers_bridge import load_delta
from sara_core.errors import SaRAError, TrainingError
from sara_core.models.bake import bake
from sara_core.training.settings import SETTINGS
from tests.support.toy_runs import settings

NO_NUMBERS = [math.nan, math.inf, -math.inf, 1e308, True, "0,5", "0.5", [[1.0]], 1e-300]
WEIGHTS = {"a": torch.arange(16.0).view(4, 4)}
DELTA = SparseDelta({"0.weight": SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (8, 8))})


def model():
    return torch.nn.Sequential(torch.nn.Linear(8, 8))


def extracted(**amount):
    return extract(WEIGHTS, {"a": WEIGHTS["a"] + 1}, **amount)


FUNCTIONS = {
    "SaRA's rate": lambda value: SaRA(model(), density=0.2, lr=value),
    "SaRA's decay": lambda value: SaRA(model(), density=0.2, weight_decay=value),
    "SaRA's density": lambda value: SaRA(model(), density=value),
    "SaRA's count": lambda value: SaRA(model(), count=value),
    "SaRA's threshold": lambda value: SaRA(model(), threshold=value),
    "SaRA's seed": lambda value: SaRA(model(), density=0.2, seed=value),
    "adjust": lambda value: SaRA(model(), density=0.2).adjust(value),
    "learning_rate_for": learning_rate_for,
    "select's density": lambda value: select(WEIGHTS, density=value),
    "select's count": lambda value: select(WEIGHTS, count=value),
    "select's threshold": lambda value: select(WEIGHTS, threshold=value),
    "merge's weights": lambda value: merge([DELTA, DELTA], [1, value]),
    "merge's share": lambda value: merge([DELTA], 1.0, "ties", keep=value),
    "extract's density": lambda value: extracted(density=value),
    "apply_": lambda value: DELTA.apply_(model(), value),
    "set_strength": lambda value: DELTA.apply_(model()).set_strength(value),
    "load_delta": lambda value: load_delta(model(), DELTA, value),
    "bake": lambda value: bake("none.safetensors", "x.safetensors", DELTA, value),
}


@pytest.mark.parametrize("what", FUNCTIONS)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused_in_words(what, value):
    with pytest.raises(SaRAError, match="it takes a "):
        FUNCTIONS[what](value)


@pytest.mark.parametrize("value", [math.nan, 2.5, True, "5", math.inf], ids=repr)
def test_what_is_no_whole_number_is_refused_in_words(value):
    for call in (lambda: extracted(count=value), lambda: merge([DELTA], 1.0, "dare", seed=value)):
        with pytest.raises(SaRAError, match="it takes a whole number"):
            call()


def test_numbers_of_numpy_and_torch_count_as_such():
    import numpy as np

    assert sara_core.select(WEIGHTS, count=np.int64(3)).count == select(WEIGHTS, count=3e0).count == 3
    handle = DELTA.apply_(model(), torch.tensor(0.5))
    handle.set_strength(np.float32(2))


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if hasattr(settings(), name)])
def test_the_settings_of_a_run_are_checked_by_name(name):
    setting = SETTINGS[name]
    if not setting.is_number:
        pytest.skip("it is no number")
    for value in [*NO_NUMBERS, setting.least - 1, *([setting.most + 1] if name not in ("batch_size", "seed") else [])]:
        with pytest.raises(TrainingError, match=f"^{name} is .*: it takes a "):
            settings(**{name: value})
