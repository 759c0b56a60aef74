"""A run that can be trusted: it resumes exactly, shows pictures that change nothing, and says what differs."""

import json

import numpy
import pytest
import torch
from PIL import Image

from tests.support import toy_models
from tests.support.toy_training import saved_deltas, train

OPTIONS = {
    "steps": 8, "density": 2.0, "learning_rate": 1e-3, "batch_size": 2, "grad_accumulation": 2, "schedule": "cosine",
    "warmup_steps": 2, "adjust_at": "0.25, 0.6", "noise_levels": "logit-normal", "snapshot_every": 0,
    "keep_last_snapshot": False,
}  # fmt: skip


@pytest.fixture
def snapshots(comfy):
    folder = comfy.base / "output" / "sara_snapshots"
    before = set(folder.glob("*"))
    return lambda: sorted(set(folder.glob("*")) - before)


def cancelled(comfy, model, data, micro_batches, **options):
    """Train, and press Cancel once so many micro-batches are done."""
    from comfy import model_management

    batches = comfy.pack_module("sara_core.data.denoising_loss")
    original, calls = batches.DenoisingLoss.__call__, iter(range(1, 10**6))

    def cancel_in_time(self):
        loss = original(self)
        if next(calls) == micro_batches:
            model_management.interrupt_current_processing(True)
        return loss

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(batches.DenoisingLoss, "__call__", cancel_in_time)
        with pytest.raises(model_management.InterruptProcessingException):
            train(comfy, model, data, **options)


def assert_same_delta(first, second):
    assert first.entries.keys() == second.entries.keys()
    for name, entry in first.entries.items():
        assert torch.equal(entry.indices, second.entries[name].indices)
        assert torch.equal(entry.values, second.entries[name].values), name


def test_two_runs_of_one_seed_have_the_same_bytes(comfy, model, data, untouched, tmp_path):
    deltas = [train(comfy, model, data, **OPTIONS)[0] for _ in range(2)]
    assert_same_delta(*deltas)
    for number, delta in enumerate(deltas):
        delta.save(tmp_path / f"{number}.safetensors")
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_resuming_twice_is_the_same_as_not_stopping(comfy, model, data, untouched, snapshots):
    """Stopped in the middle of a step, before the first re-selection, and again after the second."""
    straight, straight_loss = train(comfy, model, data, **OPTIONS)
    cancelled(comfy, model, data, 3, **OPTIONS)
    first, = snapshots()
    cancelled(comfy, model, data, 9, **OPTIONS, resume=first.name)
    second, = snapshots()
    assert second.name == first.name.replace("step0000001", "step0000005")
    resumed, resumed_loss = train(comfy, model, data, **OPTIONS, resume=second.name)
    assert_same_delta(straight, resumed)
    assert straight_loss == resumed_loss and len(resumed_loss["loss"]) == 8
    assert snapshots() == []  # the run has come to its end


def test_a_model_that_was_evicted_in_between_resumes_exactly_too(comfy, model, data, untouched, snapshots):
    from comfy import model_management

    straight, _ = train(comfy, model, data, **OPTIONS)
    cancelled(comfy, model, data, 9, **OPTIONS)
    with torch.inference_mode():
        model_management.unload_all_models()
    snapshot, = snapshots()
    assert_same_delta(straight, train(comfy, model, data, **OPTIONS, resume=snapshot.name)[0])


def test_what_does_not_decide_the_numbers_may_differ_when_resuming(comfy, model, data, untouched, snapshots):
    straight, _ = train(comfy, model, data, **OPTIONS)
    cancelled(comfy, model, data, 9, **OPTIONS)
    snapshot, = snapshots()
    options = {**OPTIONS, "gradient_checkpointing": False, "snapshot_every": 1}
    assert_same_delta(straight, train(comfy, model, data, **options, resume=snapshot.name)[0])


def test_resuming_says_exactly_what_differs(comfy, model, data, untouched, snapshots):
    cancelled(comfy, model, data, 9, **OPTIONS)
    snapshot, = snapshots()
    with pytest.raises(Exception, match=r"settings are not what they were then \(batch_size: 2 in the snapshot, 1 now; "
                                        r"seed: 0 in the snapshot, 1 now\)"):
        train(comfy, model, data, **{**OPTIONS, "batch_size": 1, "seed": 1}, resume=snapshot.name)
    latents, captions = data
    with pytest.raises(Exception, match="data: other images or captions than in the snapshot"):
        train(comfy, model, (latents[::-1], captions), **OPTIONS, resume=snapshot.name)
    with pytest.raises(Exception, match="There is no snapshot 'gone.safetensors'"):
        train(comfy, model, data, **OPTIONS, resume="gone.safetensors")
    assert snapshots() == [snapshot]
    snapshot.unlink()


def test_resuming_over_another_base_is_refused_by_name(comfy, model, data, untouched, snapshots):
    cancelled(comfy, model, data, 9, **OPTIONS)
    snapshot, = snapshots()
    with torch.inference_mode():
        other = toy_models.sd15_model(seed=1)
    with pytest.raises(Exception, match="another base model.*weights differ, diffusion_model"):
        train(comfy, other, data, **OPTIONS, resume=snapshot.name)
    snapshot.unlink()


def test_snapshots_are_written_on_the_way_and_the_last_ones_kept(comfy, model, data, untouched, snapshots):
    cancelled(comfy, model, data, 13, **{**OPTIONS, "snapshot_every": 2, "snapshots_kept": 2})
    assert [path.name.partition("_step")[2] for path in snapshots()] == ["0000004.safetensors", "0000006.safetensors"]
    for path in snapshots():
        path.unlink()


def test_a_cancelled_run_leaves_a_delta_and_a_snapshot(comfy, model, data, untouched, snapshots):
    before = saved_deltas(comfy)
    cancelled(comfy, model, data, 9, **OPTIONS)
    kept, = saved_deltas(comfy) - before
    delta = comfy.pack_module("sara_core").SparseDelta.load(kept)
    assert json.loads(delta.metadata["sara.training"])["steps"] == 4
    snapshot, = snapshots()
    title = f"run {int(snapshot.name[4:9])}, step 4"
    assert title in options_of_resume(comfy)
    snapshot.unlink()
    assert title not in options_of_resume(comfy)


def options_of_resume(comfy):
    return comfy.node_class("SaRATrain").INPUT_TYPES()["optional"]["resume"][1]["options"]


@pytest.fixture
def vae(comfy, checkpoint):
    from demo import evaluate

    with torch.inference_mode():
        return evaluate.load(checkpoint).vae


def test_pictures_on_the_way_change_nothing(comfy, model, data, untouched, vae, monkeypatch):
    from comfy import utils

    previews = []
    original = utils.ProgressBar.update_absolute
    monkeypatch.setattr(
        utils.ProgressBar, "update_absolute",
        lambda bar, value, total=None, preview=None: previews.append(preview) or original(bar, value, total, preview),
    )
    plain, loss = train(comfy, model, data, **OPTIONS)
    _, captions = data
    before = set((comfy.base / "output" / "sara_samples").glob("**/*.png"))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    samples, = comfy.execute(
        "SaRATrainSamples", positive=captions[:2], negative=captions[2:], vae=vae, every=3, steps=2
    ).outputs
    delta, loss_with = train(comfy, model, data, **OPTIONS, samples=samples)
    assert torch.equal(torch.rand(1), expected)  # nobody else's random numbers either
    assert_same_delta(plain, delta)
    assert loss == loss_with
    files = set((comfy.base / "output" / "sara_samples").glob("**/*.png")) - before
    assert sorted(path.name for path in files) == [
        f"step_{step:07}_{caption:02}.png" for step in (0, 3, 6) for caption in (1, 2)
    ]
    pictures = [preview for preview in previews if preview]
    assert [picture.size for _, picture, _ in pictures] == [(128, 64)] * 3


def test_pictures_show_the_weights_as_they_are(comfy, data, vae):
    """The last picture is the one that the finished delta gives, pixel for pixel."""
    with torch.inference_mode():
        model = toy_models.sd15_model()
    _, captions = data
    samples, = comfy.execute("SaRATrainSamples", positive=captions[:1], vae=vae, every=8, steps=2).outputs
    delta, _ = train(comfy, model, data, **{**OPTIONS, "learning_rate": 0.02}, samples=samples)
    files = (comfy.base / "output" / "sara_samples").glob("*/step_0000008_01.png")
    newest = max(files, key=lambda path: path.stat().st_mtime)
    pictures = []
    for strength in (1.0, 0.0):
        patched = comfy.execute("SaRAApply", model=model, delta=delta, strength=strength).outputs[0]
        latent = comfy.execute(
            "KSampler", model=patched, positive=captions[0], negative=captions[0], seed=0, steps=2, cfg=1.0,
            sampler_name="euler", scheduler="normal", latent_image={"samples": torch.zeros(1, 4, 8, 8)},
        ).outputs[0]
        picture = comfy.execute("VAEDecode", samples=latent, vae=vae).outputs[0]
        pictures.append((picture[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    assert numpy.array_equal(numpy.asarray(Image.open(newest)), pictures[0])
    assert not numpy.array_equal(pictures[0], pictures[1])


def test_what_is_wrong_with_a_setting_is_said_in_the_nodes_words(comfy, model, data, untouched):
    with pytest.raises(Exception, match="^adjust_at is '0': it takes parts of the run between 0 and 1"):
        train(comfy, model, data, **{**OPTIONS, "adjust_at": "0"})
    with pytest.raises(Exception, match="set learning_rate for SGD"):
        train(comfy, model, data, **{**OPTIONS, "learning_rate": 0.0}, optimizer="SGD")


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "Adafactor"])
def test_other_optimizers_train(comfy, model, data, untouched, optimizer):
    delta, _ = train(comfy, model, data, **{**OPTIONS, "learning_rate": 0.01}, optimizer=optimizer)
    assert sum(int((entry.values != 0).sum()) for entry in delta.entries.values()) > 0.9 * delta.nnz


def test_weight_decay_pulls_the_change_towards_zero(comfy, model, data, untouched):
    options = {**OPTIONS, "learning_rate": 0.01}
    free, _ = train(comfy, model, data, **options)
    held, _ = train(comfy, model, data, **options, weight_decay=10.0)

    def size(delta):
        return sum(float(entry.values.square().sum()) for entry in delta.entries.values())

    assert size(held) < 0.95 * size(free)


@pytest.mark.parametrize("rule", ["largest", "random", "gradient"])
def test_rules_for_comparison_choose_as_many_others_and_are_never_adjusted(
    comfy, model, data, untouched, caplog, rule
):
    caplog.set_level("INFO")
    smallest, _ = train(comfy, model, data, **OPTIONS)
    delta, _ = train(comfy, model, data, **OPTIONS, selection_rule=rule)
    assert delta.nnz == smallest.nnz
    assert delta.overlap(smallest) < 0.2
    selection = json.loads(delta.metadata["sara.selection"])
    assert selection["rule"] == rule and selection["theta"] is None
    assert "adjustment is off: this selection rule has no θ" in caplog.text


def test_biases_and_norms_train_where_they_are_named(comfy, model, data, untouched):
    delta, _ = train(comfy, model, data, **OPTIONS, layers="all layers, biases and norms")
    assert "diffusion_model.time_embed.0.bias" in delta.entries
    assert any(name.endswith(".norm1.bias") for name in delta.entries)


def test_the_low_rank_loss_takes_part_and_is_resumed(comfy, model, data, untouched, snapshots):
    plain, _ = train(comfy, model, data, **OPTIONS)
    options = {**OPTIONS, "low_rank_weight": 1e-3}
    straight, _ = train(comfy, model, data, **options)
    name = next(iter(plain.entries))
    assert not torch.equal(plain.entries[name].values, straight.entries[name].values)
    cancelled(comfy, model, data, 9, **options)
    snapshot, = snapshots()
    assert_same_delta(straight, train(comfy, model, data, **options, resume=snapshot.name)[0])


def test_class_images_count_as_much_as_they_are_told_to(comfy, model, data, untouched):
    latents, captions = data
    options = {**OPTIONS, "class_latents": latents[::-1], "class_positive": captions[::-1]}
    without, _ = train(comfy, model, data, **OPTIONS)
    nothing, _ = train(comfy, model, data, **options, prior_weight=0.0)
    some, _ = train(comfy, model, data, **options, prior_weight=1.0)
    for name, entry in without.entries.items():
        assert torch.allclose(entry.values, nothing.entries[name].values, atol=1e-4), name
    assert any(not torch.allclose(e.values, some.entries[n].values, atol=1e-4) for n, e in without.entries.items())


def test_class_captions_alone_keep_the_model_near_itself(comfy, model, data, untouched, snapshots):
    latents, captions = data
    options = {**OPTIONS, "class_positive": captions[::-1]}
    without, plain_losses = train(comfy, model, data, **OPTIONS)
    near, losses = train(comfy, model, data, **options, prior_weight=100.0)
    (first, *others), (plain_first, *plain_others) = losses["loss"], plain_losses["loss"]
    assert first == pytest.approx(plain_first, rel=1e-6)  # nothing has been left yet
    assert sum(others) > sum(plain_others)

    def size(delta):
        return sum(float(entry.values.square().sum()) for entry in delta.entries.values())

    assert size(near) < 0.9 * size(without)
    cancelled(comfy, model, data, 9, **options, prior_weight=100.0)
    snapshot, = snapshots()
    assert_same_delta(near, train(comfy, model, data, **options, prior_weight=100.0, resume=snapshot.name)[0])


def test_caption_dropout_needs_something_in_place_of_the_captions(comfy, model, data, untouched):
    with pytest.raises(Exception, match="connect a CLIP Text Encode with empty text to 'unconditional'"):
        train(comfy, model, data, **OPTIONS, caption_dropout=0.1)
    dropped, _ = train(comfy, model, data, **OPTIONS, caption_dropout=1.0, unconditional=data[1][0])
    plain, _ = train(comfy, model, data, **OPTIONS)
    assert any(not torch.equal(e.values, plain.entries[n].values) for n, e in dropped.entries.items())


def test_memory_is_foretold_before_the_run_and_changes_nothing(comfy, model, data, untouched, caplog, monkeypatch):
    caplog.set_level("INFO")
    session = comfy.pack_module("nodes.host.training.session")
    foretold, _ = train(comfy, model, data, **OPTIONS)
    assert "this training takes about " in caplog.text and "weights" in caplog.text
    monkeypatch.setattr(session, "estimate", lambda *_: None)
    assert_same_delta(foretold, train(comfy, model, data, **OPTIONS)[0])


def test_too_little_memory_is_foretold_with_what_to_change(comfy, model, data, untouched, caplog, monkeypatch):
    from comfy import model_management

    monkeypatch.setattr(model_management, "get_free_memory", lambda *_, **__: 1 << 20)
    train(comfy, model, data, **OPTIONS, gradient_checkpointing=False)
    assert "will probably run out of memory" in caplog.text
    assert "switch gradient_checkpointing on" in caplog.text


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
])  # fmt: skip
def test_memory_that_runs_out_loses_nothing_and_names_the_settings(
    comfy, model, data, untouched, snapshots, monkeypatch, error
):
    batches = comfy.pack_module("sara_core.data.denoising_loss")
    original, calls = batches.DenoisingLoss.__call__, iter(range(1, 100))

    def run_out(self):
        if next(calls) == 6:
            raise error
        return original(self)

    straight, _ = train(comfy, model, data, **OPTIONS)
    monkeypatch.setattr(batches.DenoisingLoss, "__call__", run_out)
    message = "Memory ran out at step 3.*What was trained in 2 steps is in output/sara.*To need less.*batch_size to 1"
    with pytest.raises(Exception, match=message):
        train(comfy, model, data, **OPTIONS)
    snapshot, = snapshots()
    assert_same_delta(straight, train(comfy, model, data, **OPTIONS, resume=snapshot.name)[0])


def test_a_damaged_snapshot_is_refused_before_anything_is_taken_from_it(comfy, model, data, untouched, snapshots):
    """Moments shorter than Δ made the optimizer write over memory that is not its own."""
    from sara_core.training import snapshot as files

    straight, _ = train(comfy, model, data, **OPTIONS)
    cancelled(comfy, model, data, 9, **OPTIONS)
    path, = snapshots()
    whole = path.read_bytes()
    for name, change in {
        "exp_avg": lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(5)),
        "exp_avg_sq": lambda state: state["optimizer"]["state"][0].update(exp_avg_sq=torch.zeros(5, dtype=torch.uint8)),
        "the trained vector": lambda state: state["store"].update(values=torch.ones(1)),
        "number of steps": lambda state: state.update(step=10**9),
        "random generator": lambda state: state["batches"]["images"].update(generator=torch.zeros(5)),
    }.items():
        state, settings = files.load(path)
        change(state)
        files.save(path, state, settings)
        with pytest.raises(Exception, match=f"saved state of a training is damaged: .*{name}"):
            train(comfy, model, data, **OPTIONS, resume=path.name)
        path.write_bytes(whole)
    assert_same_delta(straight, train(comfy, model, data, **OPTIONS, resume=path.name)[0])


def test_the_peak_of_memory_on_a_gpu_is_of_this_run(comfy, monkeypatch):
    """torch counts it from the start of the process, with all that was drawn before."""
    cleared = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", cleared.append)
    news = comfy.pack_module("nodes.host.training.news")
    news.News(None, torch.device("cpu"))
    assert cleared == []
    news.News(None, torch.device("cuda", 1))
    assert cleared == [torch.device("cuda", 1)]
