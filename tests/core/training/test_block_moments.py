"""Optimizers that keep moments in blocks (torchao's): of vectors of any length, through snapshots, stops, schedules and
adjustments."""

import copy

import pytest
import torch

from sara_core import SaRA, TrainingError
from sara_core.data.denoising_loss import Sample
from sara_core.errors import DeltaError
from sara_core.memory.estimate import sparse_state
from sara_core.training import optimizer_choice, snapshot
from sara_core.training.block_moments import END, over_any_length
from sara_core.training.optimizer import make_inner
from sara_core.training.optimizer_choice import ADAMW_8BIT, chosen_optimizer
from sara_core.training.run import Run, denoising_loss
from tests.support.block_optimizer import AdamW8bit, Blocks
from tests.support.toy_runs import Listening, ToyNetwork, settings, toy_session

SIZE = 64
LENGTHS = [1, 1000, 4095, 4096, 4097, 4351, 5000, 5120]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """AdamW 8-bit is the stand-in."""
    monkeypatch.setattr(optimizer_choice, "_adamw_8bit", lambda: AdamW8bit)


def vector(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.nn.Parameter(torch.randn(length, generator=generator))
    values.grad = torch.randn(length, generator=generator)
    return values


def bytes_of_moments(optimizer, values):
    kept = optimizer.state_dict()["state"][0]
    tables = [value if isinstance(value, dict) else {"": value} for name, value in kept.items() if name != "step"]
    return sum(part.nbytes for table in tables for part in table.values())


@pytest.mark.parametrize("length", LENGTHS)
def test_moments_are_in_8_bits_but_for_the_end(length):
    values = vector(length)
    optimizer = make_inner(AdamW8bit, values, 1e-3, 1e-2, {})
    assert optimizer.param_groups[0]["params"][0] is values
    for _ in range(3):
        optimizer.step()
    whole = 0 if length < 4096 else length - length % 256
    assert bytes_of_moments(optimizer, values) == 2 * (whole + whole // 256 * 4 + (length - whole) * 4)
    assert type(optimizer.state[values]["exp_avg"]) is (Blocks if whole else torch.Tensor)
    assert list(optimizer.state) == [values] and optimizer.param_groups[0]["params"] == [values]


@pytest.mark.parametrize("length", LENGTHS)
def test_every_element_takes_the_step_of_its_own_part(length):
    """The whole blocks as that optimizer alone would step, the end as AdamW does."""
    values, alone = vector(length), vector(length)
    optimizer = make_inner(AdamW8bit, values, 1e-3, 1e-2, {})
    border = 0 if length < 4096 else length - length % 256
    parts = [torch.nn.Parameter(part.detach().clone()) for part in (alone[:border], alone[border:])]
    others = [AdamW8bit([part], lr=1e-2, weight_decay=0.0) for part in parts]
    for step in range(4):
        values.grad = alone.grad = vector(length, step).grad
        for part, gradient, other in zip(parts, (alone.grad[:border], alone.grad[border:]), others):
            part.grad = gradient
            if len(part):
                other.step()
        optimizer.step()
    assert torch.equal(values.detach(), torch.cat(parts).detach())


def toy_run(**changes):
    chosen = settings(
        optimizer=ADAMW_8BIT, **{"selection": {"rule": "smallest", "density": 0.8}, "steps": 6, **changes}
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE), torch.nn.SiLU(), torch.nn.Linear(SIZE, SIZE))
    kind, rate, options = chosen_optimizer(chosen)
    ours = SaRA(model, **chosen.selection, lr=rate, optimizer=kind, **options)
    samples = [Sample(torch.full((SIZE,), number / 3), {}) for number in range(3)]
    batches = denoising_loss(chosen, ToyNetwork(model), samples)
    return Run(chosen, ours.store, ours.selection, ours.inner, batches, images=3, about_base={})


@pytest.mark.parametrize("changes", [
    {}, {"schedule": "cosine", "warmup_steps": 2}, {"adjust_at": []},
    {"selection": {"rule": "smallest", "count": 4608}},
])  # fmt: skip
@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_goes_on_from_its_snapshot_bit_for_bit(tmp_path, changes, stop):
    straight, stopped, resumed = (toy_run(**changes) for _ in range(3))
    straight.training.run()
    host = Listening(stop_after=stop)
    with pytest.raises(TrainingError, match=f"Stopped after step {stop} of 6"):
        toy_session(tmp_path, stopped, host, every=1).execute()
    state, _ = snapshot.load(max((tmp_path / "snapshots").iterdir()))
    resumed.training.load_state(state)
    resumed.training.run()
    assert torch.equal(resumed.store.values, straight.store.values)
    assert straight.delta().nnz == straight.selection.count


def test_a_snapshot_of_the_time_before_blocks_goes_on():
    run = toy_run()
    run.training.run(on_step=lambda step, loss: None)
    state = copy.deepcopy(run.training.state())
    elements = len(run.store.values)
    state["optimizer"]["state"] = {0: {
        "step": torch.tensor(6.0), "exp_avg": torch.randn(elements), "exp_avg_sq": torch.rand(elements),
    }}  # fmt: skip
    resumed = toy_run()
    resumed.training.load_state(copy.deepcopy(state))
    kept = resumed.training.optimizer.state[resumed.store.values]
    before = state["optimizer"]["state"][0]["exp_avg"]
    assert len(kept["exp_avg_end"]) == elements % 256
    assert torch.equal(kept["exp_avg_end"], before[-(elements % 256):])
    assert torch.allclose(kept["exp_avg"].numbers(), before[:-(elements % 256)], atol=0.03)


@pytest.mark.parametrize("damage", [
    lambda kept: kept["exp_avg"].update(codes=kept["exp_avg"]["codes"][:-1].clone()),
    lambda kept: kept["exp_avg"].update(scale=kept["exp_avg"]["scale"].double()),
    lambda kept: kept["exp_avg"]["scale"].fill_(float("nan")),
    lambda kept: kept["exp_avg"].pop("codes"),
    lambda kept: kept.update(exp_avg=kept["exp_avg"]["codes"]),
    lambda kept: kept.update(exp_avg_end=kept["exp_avg_end"][:-1].clone()),
    lambda kept: kept.pop("exp_avg_end"),
    lambda kept: kept.update(exp_avg=torch.zeros(17), exp_avg_sq=torch.zeros(17)),
    lambda kept: kept.clear() or kept.update({"step": 1.0, "exp_avg": "text"}),
])  # fmt: skip
def test_a_damaged_state_is_refused(damage):
    run = toy_run(adjust_at=[])
    run.training.run()
    state = copy.deepcopy(run.training.state())
    damage(state["optimizer"]["state"][0])
    resumed = toy_run(adjust_at=[])
    with pytest.raises(DeltaError, match="damaged"):
        resumed.training.load_state(state)
    assert not resumed.store.values.any() and not resumed.training.optimizer.state


def test_moments_that_were_all_in_fp32_take_no_more_memory_than_those_in_blocks():
    values, length = vector(5000), 5000
    optimizer = make_inner(AdamW8bit, values, 1e-3, 1e-2, {})
    moment = torch.randn(length).abs()
    state = {"state": {0: {"exp_avg": moment}}, "param_groups": optimizer.state_dict()["param_groups"]}
    now = optimizer.as_written_now(state, length)["state"][0]
    end = now["exp_avg" + END]
    assert torch.equal(end, moment[-len(end) :]) and end.untyped_storage().nbytes() == 4 * len(end)


def test_the_memory_of_blocks_is_foretold():
    run = toy_run(adjust_at=[])
    foretold = sparse_state(run.store, run.training.optimizer)
    count = len(run.store.values)
    moments = foretold.kept - foretold.present - 4 * count
    run.training.run()
    assert moments == pytest.approx(bytes_of_moments(run.training.optimizer, run.store.values), abs=256 * 8)


def test_a_step_that_cannot_be_compiled_says_what_to_choose(monkeypatch):
    def fail(self, closure=None):
        raise RuntimeError("torch.compile with fullgraph=True found no compiled frames.")

    values = vector(5000)
    optimizer = make_inner(AdamW8bit, values, 1e-3, 1e-2, {})
    monkeypatch.setattr(AdamW8bit, "step", fail)
    with pytest.raises(TrainingError, match="compiles its step, which failed.*Choose AdamW, or install bitsandbytes"):
        optimizer.step()
    assert optimizer.param_groups[0]["params"] == [values] and not optimizer.state.get(values)
    monkeypatch.setattr(AdamW8bit, "step", lambda self, closure=None: torch.zeros(2).view(3))
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        optimizer.step()


def test_other_optimizers_are_left_as_they_are():
    assert over_any_length(torch.optim.AdamW) is torch.optim.AdamW
    assert over_any_length(AdamW8bit) is over_any_length(AdamW8bit) is not AdamW8bit
