"""SaRA Train in the real host: what it trains, what it leaves alone, and how it ends."""

import json
import math

import pytest
import torch

from tests.support.toy_training import IMAGES, denoising_loss, saved_deltas, train


def loaded_weights(model):
    """The weights that a MODEL computes with once the host has loaded it."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        return {name: weight.clone() for name, weight in model.model.state_dict().items()}


def test_trains_the_small_weights_and_nothing_else(comfy, model, data, untouched):
    delta, loss = train(comfy, model, data)
    assert len(loss["loss"]) == 2 and all(map(math.isfinite, loss["loss"]))
    weights = model.model.state_dict()
    magnitudes = torch.cat([w.abs().flatten() for n, w in weights.items() if n in delta.entries])
    assert delta.nnz == pytest.approx(0.01 * magnitudes.numel(), rel=0.01)
    theta = magnitudes.kthvalue(delta.nnz).values
    for name, entry in delta.entries.items():
        assert (weights[name].flatten()[entry.indices.long()].abs() <= theta).all()
    assert sum(int((entry.values != 0).sum()) for entry in delta.entries.values()) > 0.9 * delta.nnz


@pytest.mark.parametrize("checkpointing", [True, False])
def test_first_loss_is_the_loss_of_the_untrained_model(comfy, model, data, untouched, checkpointing):
    """eps model: target is the noise, prediction is what the network says, on the very same draws."""
    _, loss = train(comfy, model, data, steps=1, gradient_checkpointing=checkpointing, seed=5)
    dataset = comfy.pack_module("nodes.host.training.dataset")
    latents, captions = data
    with torch.inference_mode(False), torch.no_grad():
        pairs = comfy.pack_module("nodes.host.training.pairing").pair(latents, captions)
        samples = dataset.prepare_samples(model, pairs, 5)
        (sample, level, noise), = denoising_loss(comfy, model, samples, 1, seed=5).draws.next_batch()
        sigma = model.model.model_sampling.sigmas[level]
        noisy = sample.latent + sigma * noise
        timestep = model.model.model_sampling.timestep(sigma[None]).float()
        prediction = model.model.diffusion_model(
            noisy / (sigma**2 + 1) ** 0.5, timestep, context=sample.conditions["c_crossattn"].cond
        )
    assert loss["loss"][0] == pytest.approx(torch.nn.functional.mse_loss(prediction, noise).item(), rel=1e-5)


def test_one_step_can_be_plotted(comfy, model, data, untouched):
    _, loss = train(comfy, model, data, steps=1)
    comfy.execute("LossGraphNode", loss=loss, filename_prefix="loss")


def test_two_runs_of_one_seed_are_equal_and_seeds_differ(comfy, model, data, untouched):
    first, again, other = (train(comfy, model, data, seed=seed)[0] for seed in (3, 3, 4))
    name = next(iter(first.entries))
    assert torch.allclose(first.entries[name].values, again.entries[name].values, atol=1e-6)
    assert not torch.allclose(first.entries[name].values, other.entries[name].values, atol=1e-6)


def test_a_batch_equals_accumulation_over_the_same_images(comfy, model, data, untouched):
    """One epoch at once or in three micro-batches draws the same noise, so loss and change agree."""
    at_once, loss_at_once = train(comfy, model, data, steps=1, batch_size=IMAGES)
    in_parts, loss_in_parts = train(comfy, model, data, steps=1, grad_accumulation=IMAGES)
    assert loss_at_once["loss"][0] == pytest.approx(loss_in_parts["loss"][0], rel=1e-5)
    # Adam's first step is the learning rate times the gradient's sign; only gradients near 0 may disagree.
    for name, entry in at_once.entries.items():
        same = torch.isclose(entry.values, in_parts.entries[name].values, rtol=1e-3)
        assert same.float().mean() > 0.99, name


def test_mixed_sizes_train_together(comfy, model, data, untouched):
    latents, captions = data
    mixed = [latents[0], {"samples": torch.randn(1, 4, 8, 16)}, latents[2]]
    _, loss = train(comfy, model, (mixed, captions), steps=2, batch_size=3)
    assert all(map(math.isfinite, loss["loss"]))


def test_applying_gives_the_weights_training_ended_with(comfy, model, data, monkeypatch):
    store_module = comfy.pack_module("sara_core.backward.store")
    ended_with = {}
    restore = store_module.Store.restore

    def keep_then_restore(self):
        for segment, holder in zip(self.support, self.holders):
            ended_with[segment.name] = holder.weight.detach().clone()
        restore(self)

    monkeypatch.setattr(store_module.Store, "restore", keep_then_restore)
    delta, _ = train(comfy, model, data)
    base = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    patched = comfy.execute("SaRAApply", model=model, delta=delta, strength=1.0).outputs[0]
    now = loaded_weights(patched)
    after = loaded_weights(model)  # the host takes the patch off again
    assert all(torch.equal(after[name], weight) for name, weight in base.items())
    assert ended_with.keys() == delta.entries.keys()
    for name, weight in ended_with.items():
        assert torch.equal(now[name], weight), name


def test_cancel_keeps_what_was_trained(comfy, model, data, untouched, monkeypatch):
    from comfy import model_management, utils

    def cancel_after_second_step(self, step, *args):
        if step == 2:
            model_management.interrupt_current_processing(True)  # what the Cancel button does

    monkeypatch.setattr(utils.ProgressBar, "update_absolute", cancel_after_second_step)
    before = saved_deltas(comfy)
    with pytest.raises(model_management.InterruptProcessingException):
        train(comfy, model, data, steps=10)
    kept, = saved_deltas(comfy) - before
    delta = comfy.pack_module("sara_core").SparseDelta.load(kept)
    assert json.loads(delta.metadata["sara.training"])["steps"] == 2


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_an_error_inside_the_model_leaves_it_untouched(comfy, model, data, untouched, monkeypatch, when):
    layers = comfy.pack_module("sara_core.backward.ops")
    calls = iter(range(10_000))
    method = "forward" if when == "forward" else "input_gradient"
    original = getattr(layers.LinearOp, method)

    def fail_later(self, *args):
        if next(calls) == 70:
            raise ZeroDivisionError("planted")
        return original(self, *args)

    monkeypatch.setattr(layers.LinearOp, method, fail_later)
    with pytest.raises(ZeroDivisionError, match="planted"):
        train(comfy, model, data, steps=10)


def test_non_finite_loss_stops_and_keeps_the_last_good_values(comfy, model, data, untouched, monkeypatch):
    batches = comfy.pack_module("sara_core.data.denoising_loss")
    calls = iter(range(100))
    original = batches.DenoisingLoss.__call__
    monkeypatch.setattr(batches.DenoisingLoss, "__call__",
                        lambda self: original(self) * (math.nan if next(calls) >= 2 else 1.0))
    before = saved_deltas(comfy)
    with pytest.raises(Exception, match="step 5.*3. time in a row.*learning rate.*output/sara/stopped"):
        train(comfy, model, data, steps=10)
    assert len(saved_deltas(comfy) - before) == 1


@pytest.mark.parametrize("settings, message", [
    ({"select_by": "threshold", "threshold": 1e-12}, "smaller than the threshold"),
    ({"select_by": "threshold", "threshold": 9.0}, "full fine-tuning"),
    ({"select_by": "count", "count": 2**31 - 1}, "full fine-tuning"),
    ({"include": "no_such_layer"}, "matches no weight of this model"),
])
def test_selections_of_nothing_or_everything(comfy, model, data, untouched, settings, message):
    with pytest.raises(Exception, match=message) as raised:
        train(comfy, model, data, **settings)
    assert type(raised.value).__name__ == "SelectionError"


def test_counts_of_images_and_captions_that_differ(comfy, model, data, untouched):
    latents, captions = data
    with pytest.raises(Exception, match="3 images but 2 captions"):
        train(comfy, model, (latents, captions[:2]))


def test_controlnet_in_the_conditioning_is_refused(comfy, model, data, untouched):
    latents, captions = data
    with pytest.raises(Exception, match="ControlNet"):
        train(comfy, model, (latents, [[[captions[0][0][0], {"control": object()}]]]))


def test_include_and_exclude_patterns(comfy, model, data, untouched):
    delta, _ = train(comfy, model, data, steps=1, include="attn1, attn2", exclude="to_v")
    assert delta.entries and all("attn" in name and "to_v" not in name for name in delta.entries)
