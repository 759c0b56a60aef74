"""The optimizers that can be chosen by name."""

import pytest
import torch

from sara_core import TrainingError
from sara_core.training import optimizer_choice
from sara_core.training.optimizer_choice import ADAMW_8BIT, OPTIMIZERS, follows_the_papers_rate, optimizer_named


@pytest.fixture(autouse=True)
def nothing_remembered():
    optimizer_choice._adamw_8bit.cache_clear()
    yield
    optimizer_choice._adamw_8bit.cache_clear()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != ADAMW_8BIT])
def test_the_usual_ones_are_torchs_own_and_lower_a_loss(name):
    kind, options = optimizer_named(name)
    assert kind is getattr(torch.optim, name)
    values = torch.nn.Parameter(torch.full((50,), 3.0))
    optimizer = kind([values], lr=0.05, **options)
    for _ in range(20):
        optimizer.zero_grad()
        values.square().sum().backward()
        optimizer.step()
    assert values.abs().max() < 2.9


def test_8_bit_adamw_is_whichever_package_has_it(monkeypatch):
    monkeypatch.setattr(
        optimizer_choice, "_8BIT", (("no_such_package", "X"), ("torch.optim", "Nothing"), ("torch.optim", "AdamW"))
    )
    assert optimizer_named(ADAMW_8BIT) == (torch.optim.AdamW, {})


def test_without_a_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(optimizer_choice, "_8BIT", (("no_such_package", "AdamW8bit"),))
    with pytest.raises(TrainingError, match="needs the package bitsandbytes or torchao.*Choose AdamW"):
        optimizer_named(ADAMW_8BIT)


def test_only_sgd_takes_steps_of_the_gradients_own_size():
    assert [name for name in OPTIMIZERS if not follows_the_papers_rate(name)] == ["SGD"]
