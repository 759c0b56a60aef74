"""N + M steps are N steps, a snapshot, and M steps of another process: bit for bit, whatever happens in between."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from sara_core import DeltaError
from sara_core.training import snapshot
from sara_core.training.loop import Training, TrainingSettings
from sara_core.training.optimizer import make_inner
from tests.support.small_models import attached, every_bit, loss_of, repeatable, same_bits, small_batches, small_net

pytestmark = pytest.mark.bits


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


class Stopped(BaseException):
    """What a host raises for Cancel: no Exception."""


class Batches:
    """Losses over small batches in a random order; `bad` calls give no number."""

    def __init__(self, model, bad=()):
        self.model, self.bad = model, bad
        self.pairs = small_batches(5)
        self.generator = torch.Generator().manual_seed(3)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        number = int(torch.randint(len(self.pairs), (1,), generator=self.generator))
        x, y = self.pairs[number]
        x = x + 0.1 * torch.randn(x.shape, generator=self.generator)
        return loss_of(self.model, (x, y)) * (float("nan") if self.calls in self.bad else 1.0)

    def state(self):
        return {"generator": self.generator.get_state(), "calls": self.calls}

    def load_state(self, state):
        self.generator.set_state(state["generator"])
        self.calls = state["calls"]


CASES = {
    "plain": {},
    "accumulation": {"accumulation": 3},
    "cosine with warm-up": {"schedule": "cosine", "warmup": 4},
    "re-selection before": {"adjust_at": (4,)},
    "re-selection after": {"adjust_at": (9,)},
    "re-selections at the very step and twice": {"adjust_at": (6, 9)},
    "everything": {"accumulation": 2, "schedule": "linear", "warmup": 3, "adjust_at": (3, 7)},
}


def start(case, bad=(), optimizer=torch.optim.AdamW, **options):
    model = small_net()
    store = attached(model)
    inner = make_inner(optimizer, store.values, 0.002, 3e-3, options)
    theta = float(torch.cat([store.trained_values(n).abs() for n in range(len(store.support))]).max())
    settings = TrainingSettings(12, theta=theta * 0.9, **case)
    return Training(store, inner, Batches(model, bad), settings), model


def stopped_after(training, steps, micro_batches=0):
    """Run until `steps` are complete and `micro_batches` of the next are done, then Cancel."""
    done = 0

    def on_micro_batch():
        nonlocal done
        if training.step == steps:
            if done == micro_batches:
                raise Stopped
            done += 1

    with pytest.raises(Stopped):
        training.run(on_micro_batch=on_micro_batch)
    assert training.step == steps


def resumed(path, training, case, **options):
    """What a new process would do with the file."""
    snapshot.save(path, training.state(), {"case": repr(case)})
    again, model = start(case, **options)
    again.load_state(snapshot.load(path)[0])
    return again, model


def assert_equal_runs(first, second):
    (run, model), (other, other_model) = first, second
    assert [x.hex() for x in run.losses] == [x.hex() for x in other.losses]
    assert torch.equal(run.store.values, other.store.values)
    assert same_bits(every_bit(model), every_bit(other_model))
    for mine, theirs in zip(run.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert run.adjustments == other.adjustments
    delta, other_delta = run.store.delta(), other.store.delta()
    assert all(torch.equal(e.values, other_delta.entries[name].values) for name, e in delta.entries.items())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_resuming_twice_is_the_same_as_not_stopping(case, tmp_path):
    straight = start(case)
    straight[0].run()
    run = start(case)
    stopped_after(run[0], 6)
    run = resumed(tmp_path / "a.safetensors", run[0], case)
    stopped_after(run[0], 9)
    run = resumed(tmp_path / "b.safetensors", run[0], case)
    run[0].run()
    assert_equal_runs(run, straight)
    assert run[0].step == 12 and len(run[0].losses) == 12
    if "adjust_at" in case:
        assert run[0].store.values.numel() < run[0].store.delta().nnz


@pytest.mark.parametrize("micro_batches", [0, 1, 2])
def test_a_step_that_was_cut_short_is_done_anew(micro_batches, tmp_path):
    case = {"accumulation": 3, "adjust_at": (5,)}
    straight = start(case)
    straight[0].run()
    run = start(case)
    stopped_after(run[0], 6, micro_batches)
    run = resumed(tmp_path / "a.safetensors", run[0], case)
    run[0].run()
    assert_equal_runs(run, straight)


@pytest.mark.parametrize("optimizer, options", [
    (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {}), (torch.optim.Adafactor, {}),
])  # fmt: skip
def test_other_optimizers_resume_too(optimizer, options, tmp_path):
    case = {"adjust_at": (4, 9)}
    straight = start(case, optimizer=optimizer, **options)
    straight[0].run()
    run = start(case, optimizer=optimizer, **options)
    stopped_after(run[0], 6)
    run = resumed(tmp_path / "a.safetensors", run[0], case, optimizer=optimizer, **options)
    run[0].run()
    assert_equal_runs(run, straight)


def test_the_caution_after_a_bad_step_is_resumed(tmp_path):
    straight = start({}, bad=(3,))
    straight[0].run()
    run = start({}, bad=(3,))
    stopped_after(run[0], 5)
    run = resumed(tmp_path / "a.safetensors", run[0], {}, bad=(3,))
    run[0].run()
    assert torch.equal(run[0].store.values, straight[0].store.values)
    assert run[0].optimizer.param_groups[0]["lr"] == 1.5e-3


@pytest.mark.parametrize("stopped_at", [1, 2, 3])
def test_a_bad_step_right_after_resuming_goes_back_as_far_as_without(stopped_at, tmp_path):
    straight = start({}, bad=(3,))
    straight[0].run()
    run = start({}, bad=(3,))
    stopped_after(run[0], stopped_at)
    run = resumed(tmp_path / "a.safetensors", run[0], {}, bad=(3,))
    run[0].run()
    assert torch.equal(run[0].store.values, straight[0].store.values)


def test_a_snapshot_of_before_without_the_last_good_values_is_resumed(tmp_path):
    straight = start({})
    straight[0].run()
    run = start({})
    stopped_after(run[0], 6)
    state = run[0].state()
    del state["last_good"]
    again = start({})
    again[0].load_state(state)
    assert not again[0].state()["last_good"].requires_grad
    again[0].run()
    assert_equal_runs(again, straight)


def test_a_run_after_whose_adjustment_nothing_was_below_the_threshold_is_resumed(tmp_path):
    """It goes on with all its elements, as if there had been no adjustment."""
    case = {"adjust_at": (2,)}
    runs = [start(case), start(case), start({})]
    for run, _ in runs[:2]:
        run.settings = replace(run.settings, theta=1e-12)
    straight, stopped, without = runs
    straight[0].run()
    without[0].run()
    stopped_after(stopped[0], 4)
    assert stopped[0].adjustments == [(2, (len(stopped[0].store.values), 0, True))]
    again = resumed(tmp_path / "a.safetensors", stopped[0], case)
    again[0].run()
    assert_equal_runs(again, straight)
    assert torch.equal(straight[0].store.values, without[0].store.values)


def test_the_state_of_a_run_that_has_not_begun_carries_no_graph():
    run, _ = start({})
    assert not run.state()["last_good"].requires_grad


def test_the_snapshot_holds_tensors_and_json_only(tmp_path):
    run, _ = start({})
    stopped_after(run, 3)
    path = tmp_path / "a.safetensors"
    snapshot.save(path, run.state(), {"seed": 1, "patterns": ["attn"]})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        assert {json.loads(metadata[key]).__class__ for key in metadata if key != "sara.snapshot.version"} == {dict}
    state, settings = snapshot.load(path)
    assert settings == {"seed": 1, "patterns": ["attn"]}
    assert state["step"] == 3


def test_another_base_is_refused_by_the_name_of_a_weight(tmp_path):
    run, _ = start({})
    stopped_after(run, 3)
    path = tmp_path / "a.safetensors"
    snapshot.save(path, run.state(), {})
    other, model = start({})
    store = other.store
    with torch.no_grad():
        position = store.support.segments[0].flat()[0]
        name = store.support.segments[0].name
        dict(model.named_parameters())[name].view(-1)[position] *= 1.5
        store.bind(0, store.holders[0], in_place=True)
    with pytest.raises(DeltaError, match=f"another base model.*1 of .* weights differ, {name}"):
        other.load_state(snapshot.load(path)[0])


def test_settings_that_differ_are_told_one_by_one():
    saved = {"steps": 10, "seed": 1, "patterns": ["attn2"], "gone": 0}
    current = {"steps": 20, "seed": 1, "patterns": ("attn2",), "new": True}
    assert snapshot.differences(saved, current) == [
        "steps: 10 in the snapshot, 20 now",
        "gone: 0 in the snapshot, absent now",
        "new: absent in the snapshot, True now",
    ]


@pytest.mark.parametrize("damage", [
    lambda m: m.pop("sara.snapshot.version"),
    lambda m: m.update({"sara.snapshot.version": "2"}),
    lambda m: m.update({"sara.snapshot.state": "{"}),
    lambda m: m.update({"sara.snapshot.state": '{"keys": ["a"], "values": []}'}),
    lambda m: m.update({"sara.snapshot.state": '{"__tensor__": "nowhere", "bool": false}'}),
    lambda m: m.update({"sara.snapshot.state": "[" * 100_000}),
    lambda m: m.pop("sara.snapshot.settings"),
])  # fmt: skip
def test_damaged_snapshots_are_told_so(tmp_path, damage):
    from sara_core.files import container

    path = tmp_path / "a.safetensors"
    snapshot.save(path, {"x": torch.ones(2)}, {})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    damage(metadata)
    with open(path, "wb") as file:
        container.write(file, {"x": torch.ones(2)}, metadata)
    with pytest.raises(DeltaError):
        snapshot.load(path)


def test_a_cut_snapshot_is_refused_at_every_length(tmp_path):
    path, cut = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    snapshot.save(path, {"x": torch.ones(2), "n": [1, 2.5, None, True]}, {"a": 1})
    content = path.read_bytes()
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(DeltaError):
            snapshot.load(cut)


def test_the_last_few_snapshots_of_a_run_are_kept_and_other_files_left_alone(tmp_path):
    other = tmp_path / "run_00002_step0000001.safetensors"
    snapshot.save(other, {}, {})
    folder = snapshot.RunSnapshots(tmp_path, "run_00001", keep=2)
    for step in (5, 50, 500, 5000):
        folder.save(step, {"step": step}, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "run_00001_step0000500.safetensors", "run_00001_step0005000.safetensors", other.name
    ]
    folder.discard()
    assert list(tmp_path.iterdir()) == [other]
