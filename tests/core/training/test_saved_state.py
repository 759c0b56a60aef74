"""What a training goes on from is hostile until it is checked: anything but what was saved is refused in our own words,
before a single number has changed."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from devtools.comfyui.install import ROOT
from sara_core import DeltaError
from sara_core.files import container
from sara_core.training import snapshot
from sara_core.training.loop import Training, TrainingSettings
from sara_core.training.low_rank import LowRankLoss
from sara_core.training.optimizer import make_inner
from tests.support.small_models import (
    attached, every_bit, loss_of, repeatable, same_bits, small_batches, small_net, trained,
)  # fmt: skip

NOT_A_NUMBER = float("nan")


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def put(*path):
    """A function that puts a value at a place in a state: put("sara", "values", change=…)(state)."""
    *inside, last, change = path

    def damage(state):
        for name in inside:
            state = state[name]
        if change is REMOVED:
            del state[last]
        else:
            state[last] = change(state[last]) if callable(change) else change

    return damage


REMOVED = object()
MOMENT = ("state", 0, "exp_avg")
SQUARES = ("state", 0, "exp_avg_sq")
STEP = ("state", 0, "step")
GROUP = ("param_groups", 0)


class Disguised(torch.Tensor):
    """Says of its shape what it likes."""

    shape = torch.Size([233])


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


TENSORS = {
    "shorter": lambda t: t[:5].clone(),
    "one element short": lambda t: t[:-1].clone(),
    "longer": lambda t: torch.cat([t, t]),
    "one element": lambda t: t[:1].clone(),
    "no dimension": lambda t: t[0].clone(),
    "two dimensions": lambda t: t[None].clone(),
    "the same four bytes for all": lambda t: t[:1].expand(len(t)),
    "every second element of another": lambda t: torch.cat([t, t])[::2],
    "fp16": lambda t: t.half(),
    "fp64": lambda t: t.double(),
    "complex": lambda t: t.to(torch.complex64),
    "bytes": lambda t: t.to(torch.uint8),
    "without values": lambda t: t.to("meta"),
    "without memory": lambda t: freed(t.clone()),
    "zero without memory": lambda t: torch._efficientzerotensor(len(t)),
    "of a pending sign": lambda t: torch._neg_view(t.clone()),
    "of a class of its own": lambda t: t.clone().as_subclass(Disguised),
    "sparse": lambda t: t.to_sparse(),
    "not a number": lambda t: t.clone().index_fill_(0, torch.tensor([3]), NOT_A_NUMBER),
    "infinite": lambda t: t.clone().index_fill_(0, torch.tensor([3]), float("inf")),
    "a list": lambda t: t.tolist(),
    "nothing": lambda t: None,
    "missing": REMOVED,
}
NUMBERS = {
    "a text": "x", "nothing": None, "true": True, "a list": [1.0], "below 0": -1.0, "not a number": NOT_A_NUMBER,
    "infinite": float("inf"), "beyond floats": 10**400,
}  # fmt: skip
STATES = {
    # An infinite moment is what one huge gradient leaves; the values stay finite.
    **{f"first moment {name}": put(*MOMENT, change) for name, change in TENSORS.items() if name != "infinite"},
    **{f"second moment {name}": put(*SQUARES, change) for name, change in TENSORS.items() if name != "infinite"},
    "second moment below 0": put(*SQUARES, lambda t: -t - 1),
    "a moment of another name": put("state", 0, lambda s: {**s, "further": s["exp_avg"]}),
    **{f"trained vector {name}": put("sara", "values", change) for name, change in TENSORS.items()},
    **{f"active {name}": put("sara", "active", change) for name, change in TENSORS.items()
       if name not in ("not a number", "infinite")},
    "active as bytes": put("sara", "active", lambda t: t.to(torch.uint8)),
    "nothing active": put("sara", "active", torch.zeros_like),
    "positions of others": put("sara", "indices", 0, lambda t: t.flip(0)),
    "positions in int64": put("sara", "indices", 0, lambda t: t.long()),
    "too few positions": put("sara", "indices", lambda i: i[:-1]),
    "positions missing": put("sara", "indices", REMOVED),
    "no names": put("sara", "names", None),
    "names missing": put("sara", "names", REMOVED),
    "no digests": put("sara", "digests", []),
    "digests that are numbers": put("sara", "digests", 5),
    "another shape": put("sara", "shapes", 0, lambda s: s[::-1]),
    "a shape that is none": put("sara", "shapes", 0, 3),
    "nothing trained": put("sara", None),
    "no optimizer": put("state", REMOVED),
    "a list of states": put("state", []),
    "a state that is none": put("state", 0, 7),
    "a state of another parameter": put("state", lambda s: {1: s[0]}),
    "a billion steps": put(*STEP, lambda t: torch.tensor(1e9)),
    "steps below 0": put(*STEP, lambda t: torch.tensor(-1.0)),
    "half a step": put(*STEP, lambda t: torch.tensor(2.5)),
    "steps that are no number": put(*STEP, lambda t: torch.tensor(NOT_A_NUMBER)),
    "steps in a vector": put(*STEP, lambda t: torch.ones(2)),
    "steps in a table": put(*STEP, {}),
    "a number of many digits for a name": put("state", 0, lambda s: {**s, 10**5000: 1}),
    "a number of many digits for an option": put(*GROUP, lambda g: {**g, 10**5000: 1}),
    "no groups": put("param_groups", []),
    "two groups": put("param_groups", lambda g: [*g, *g]),
    "groups that are none": put("param_groups", 3),
    "a group that is none": put("param_groups", 0, 3),
    "a tensor for a parameter's number": put("state", lambda s: {torch.tensor([0, 1]): s[0]}),
    "a tensor in a shape": put("sara", "shapes", 0, 0, torch.zeros(3)),
    "a tensor for a name": put("sara", "names", 0, torch.zeros(3)),
    "a tensor for a digest": put("sara", "digests", 0, torch.zeros(3)),
    "two parameters": put(*GROUP, "params", [0, 1]),
    "another parameter": put(*GROUP, "params", [1]),
    "parameters missing": put(*GROUP, "params", REMOVED),
    **{f"rate {name}": put(*GROUP, "lr", change) for name, change in NUMBERS.items()},
    **{f"eps {name}": put(*GROUP, "eps", change) for name, change in NUMBERS.items()},
    **{f"decay {name}": put(*GROUP, "weight_decay", change) for name, change in NUMBERS.items()},
    "three betas": put(*GROUP, "betas", (0.9, 0.9, 0.9)),
    "a beta of 2": put(*GROUP, "betas", (2.0, 0.9)),
    "no betas": put(*GROUP, "betas", None),
    "amsgrad": put(*GROUP, "amsgrad", True),
    "amsgrad as text": put(*GROUP, "amsgrad", "no"),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved_state():
    with repeatable():
        return trained()[1].state_dict()


@pytest.mark.parametrize("damage", STATES.values(), ids=STATES)
def test_a_damaged_state_is_refused_and_nothing_changes(saved_state, damage):
    state = copy.deepcopy(saved_state)
    damage(state)
    model, ours = trained(1)
    before, values = every_bit(model), ours.values.detach().clone()
    moments = copy.deepcopy(dict(ours.state[ours.values]))
    with pytest.raises(DeltaError):
        ours.load_state_dict(state)
    assert same_bits(every_bit(model), before) and torch.equal(ours.values, values)
    assert same_bits(dict(ours.state[ours.values]), moments)
    loss_of(model, small_batches(1)[0]).backward()
    ours.step()
    ours.load_state_dict(copy.deepcopy(saved_state))


@pytest.mark.parametrize("state", [None, 3, [], {"sara": 1}, "text"])
def test_what_is_no_state_at_all_is_refused(state):
    _, ours = trained(0)
    with pytest.raises(DeltaError):
        ours.load_state_dict(state)


def test_a_state_before_the_first_step_is_one():
    _, ours = trained(0)
    ours.load_state_dict(trained(0)[1].state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_s_default_dtype_decides_nothing(saved_state, dtype):
    _, ours = trained(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        ours.load_state_dict(copy.deepcopy(saved_state))
    finally:
        torch.set_default_dtype(before)
    assert same_bits(dict(ours.state[ours.values]), saved_state["state"][0])


def test_how_it_is_computed_stays_with_the_machine_and_options_of_other_versions_are_left_out(saved_state):
    state = copy.deepcopy(saved_state)
    state["param_groups"][0].update(fused=None, foreach=True, lr=0.5, decided_in_a_later_version=[1], max_lr=0.7)
    del state["param_groups"][0]["maximize"]
    _, ours = trained(0)
    before = dict(ours.param_groups[0])
    ours.load_state_dict(state)
    changed = {"lr": 0.5, "max_lr": 0.7, "params": None}  # what a scheduler has added is what its next one needs
    assert {**ours.param_groups[0], "params": None} == {**before, **changed}


class Batches:
    def __init__(self, model):
        self.model, self.batches, self.position = model, small_batches(4), 0

    def __call__(self):
        self.position += 1
        return loss_of(self.model, self.batches[self.position % 4])

    def state(self):
        return {"position": self.position}

    def check_state(self, state):
        if state != {"position": 3}:
            raise DeltaError("other batches")

    def load_state(self, state):
        self.position = state["position"]


def started(scaled: bool = False):
    model = small_net()
    store = attached(model)
    inner = make_inner(torch.optim.AdamW, store.values, 0.002, 3e-3, {})
    settings = TrainingSettings(8, adjust_at=(2,), theta=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    return Training(store, inner, Batches(model), settings, LowRankLoss(store, 0.01, 0), scaler), model


class Stopped(Exception):
    pass


def stop_after_three(step, loss):
    if step == 3:
        raise Stopped


@pytest.fixture(scope="module")
def run_states():
    """scaled → the state of a run after three steps."""
    states = {}
    with repeatable():
        for scaled in (False, True):
            run, _ = started(scaled)
            with pytest.raises(Stopped):
                run.run(stop_after_three)
            states[scaled] = run.state()
    return states


COUNTS = {
    "a text": "3", "nothing": None, "true": True, "a fraction": 3.0, "below 0": -1, "more than the run": 9,
    "not a number": NOT_A_NUMBER, "beyond everything": 10**30,
}  # fmt: skip
RUNS = {
    **{f"step {name}": put("step", change) for name, change in COUNTS.items()},
    **{f"{part} missing": put(part, REMOVED) for part in (
        "step", "losses", "adjustments", "caution", "store", "optimizer", "scaler", "batches", "low_rank")},
    **{f"last good values {name}": put("last_good", change) for name, change in TENSORS.items() if name != "missing"},
    "losses of other steps": put("losses", lambda x: x[:-1]),
    "losses that are none": put("losses", 3),
    "losses as text": put("losses", 0, "1.0"),
    "infinite losses": put("losses", 0, float("inf")),
    "an adjustment that is none": put("adjustments", 0, 3),
    "an adjustment after the step": put("adjustments", 0, 0, 4),
    "half an adjustment": put("adjustments", 0, 1, lambda x: x[:2]),
    "an adjustment that gains elements": put("adjustments", 0, 1, 1, lambda x: 10**9),
    "an adjustment of no elements": put("adjustments", 0, 1, [0, 0, True]),
    "an adjustment in words": put("adjustments", 0, 1, 2, "yes"),
    "caution of two": put("caution", lambda x: x[:2]),
    "a rate factor of 0": put("caution", 0, 0.0),
    "a rate factor of 2": put("caution", 0, 2.0),
    "good steps below 0": put("caution", 1, -1),
    "more bad steps than steps": put("caution", 2, 4),
    "other batches": put("batches", {"position": 4}),
    "no batches": put("batches", None),
    "no low-rank loss": put("low_rank", None),
    "a generator cut short": put("low_rank", "generator", lambda t: t[:-1].clone()),
    "a generator of zeros": put("low_rank", "generator", torch.zeros_like),
    "a generator of ones": put("low_rank", "generator", lambda t: torch.full_like(t, 255)),
    "a generator in fp32": put("low_rank", "generator", lambda t: t.float()),
    "more steps of the optimizer than of the run": put("optimizer", *STEP, lambda t: torch.tensor(4.0)),
    "moments as long as before the adjustment": put("optimizer", *MOMENT, lambda t: torch.zeros(1 + len(t))),
    "another beta": put("optimizer", *GROUP, "betas", (0.8, 0.999)),
    "the other direction": put("optimizer", *GROUP, "maximize", True),
    "a store that is none": put("store", []),
}  # fmt: skip
SCALES = {
    "no scale": put("scaler", {}),
    "a scale of 0": put("scaler", "scale", 0.0),
    "a scale that is no number": put("scaler", "scale", NOT_A_NUMBER),
    "a scale in words": put("scaler", "scale", "8"),
    "another growth": put("scaler", "growth_factor", 1e30),
    "good steps below 0": put("scaler", "_growth_tracker", -1),
}


@pytest.mark.parametrize("scaled, damage", [
    *[pytest.param(False, damage, id=name) for name, damage in RUNS.items()],
    *[pytest.param(True, damage, id=name) for name, damage in SCALES.items()],
])  # fmt: skip
def test_a_damaged_run_is_refused_and_the_new_one_is_as_it_was(run_states, scaled, damage):
    state = copy.deepcopy(run_states[scaled])
    damage(state)
    run, model = started(scaled)
    before, fresh = every_bit(model), run.state()
    with pytest.raises(DeltaError):
        run.load_state(state)
    assert same_bits(every_bit(model), before) and not run.store.values.any() and not run.optimizer.state
    again = run.state()
    assert again["step"] == 0 and again["losses"] == [] and again["scaler"] == fresh["scaler"]
    assert torch.equal(again["low_rank"]["generator"], fresh["low_rank"]["generator"])
    run.load_state(copy.deepcopy(run_states[scaled]))
    assert run.step == 3


def test_second_moments_of_0_are_sound(run_states):
    """What an element without a gradient has."""
    state = copy.deepcopy(run_states[False])
    put("optimizer", "state", 0, "exp_avg_sq", torch.zeros_like)(state)
    run, _ = started()
    run.load_state(state)
    assert run.step == 3 and not run.optimizer.state[run.store.values]["exp_avg_sq"].any()


def test_a_damaged_option_of_the_optimizer_is_called_by_its_name(run_states):
    state = copy.deepcopy(run_states[False])
    put("optimizer", *GROUP, "betas", ("x", 0.999))(state)
    with pytest.raises(DeltaError, match="the optimizer's betas"):
        started()[0].load_state(state)


def test_a_tensor_named_twice_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    snapshot.save(path, {"x": torch.ones(3)}, {})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tree = json.loads(metadata["sara.snapshot.state"])
    tree["values"] = [tree["values"] * 1000]
    metadata["sara.snapshot.state"] = json.dumps(tree)
    with open(path, "wb") as file:
        container.write(file, {"x": torch.ones(3)}, metadata)
    with pytest.raises(DeltaError, match="is damaged"):
        snapshot.load(path)


@pytest.mark.parametrize("state, settings", [([], {}), ({}, []), ({}, None), (3, {}), ({}, "x")])
def test_a_snapshot_of_something_else_is_refused(tmp_path, state, settings):
    path = tmp_path / "a.safetensors"
    snapshot.save(path, state, settings)
    with pytest.raises(DeltaError, match="no table"):
        snapshot.load(path)


CUT_SHORT = """
import os, sys
import torch
from sara_core.training import snapshot
path = sys.argv[1]
snapshot.save(path, {"x": torch.ones(1 << 20)}, {})
state, _ = snapshot.load(path)
os.truncate(path, 0)
print(float(state["x"].sum()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not cut a file that is mapped")
def test_a_file_that_is_cut_short_after_loading_does_no_harm(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", CUT_SHORT, tmp_path / "a.safetensors"], cwd=ROOT, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout.strip()) == (0, str(float(1 << 20)))
