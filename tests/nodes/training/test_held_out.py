"""Pictures that SaRA Train holds out: never trained on, measured always alike, and of no effect on what is trained."""

import json

import pytest

from tests.support.toy_training import train

OPTIONS = {"steps": 4, "density": 2.0, "batch_size": 2, "snapshot_every": 0, "keep_last_snapshot": False, "seed": 3}


@pytest.fixture
def hold_out(comfy):
    return comfy.pack_module("nodes.host.training.held_out").hold_out


def paired(comfy, latents, captions):
    return comfy.pack_module("nodes.host.training.pairing").read_training_data(latents, captions)


def same(first, second):
    return first.entries.keys() == second.entries.keys() and all(
        entry.values.equal(second.entries[name].values) and entry.indices.equal(second.entries[name].indices)
        for name, entry in first.entries.items()
    )


def held_out_of(delta):
    return json.loads(delta.metadata["sara.training"])["held_out"]


def test_what_is_trained_is_what_the_other_pictures_alone_give(comfy, model, data, output, untouched, hold_out):
    latents, captions = data
    kept = [number for number, latent in enumerate(latents)
            if any(latent["samples"].equal(image) for image in hold_out(paired(comfy, *data), 1, 3).images.images)]
    assert len(kept) == 2
    with_one_out, _ = train(comfy, model, data, held_out=1, **OPTIONS)
    without_it, _ = train(comfy, model, ([latents[n] for n in kept], [captions[n] for n in kept]), **OPTIONS)
    assert same(with_one_out, without_it) and "held_out" not in without_it.metadata["sara.training"]
    everything, _ = train(comfy, model, data, **OPTIONS)
    assert not same(with_one_out, everything)


def test_the_losses_are_told_from_the_base_on_and_are_the_same_again(comfy, model, data, output):
    losses = [held_out_of(train(comfy, model, data, held_out=1, **OPTIONS)[0]) for _ in range(2)]
    assert losses[0] == losses[1] and losses[0]["images"] == 1
    steps, values = zip(*losses[0]["losses"])
    assert steps == (0, 1, 2, 3, 4) and len(set(values)) == 5
    runs = comfy.pack_module("nodes.host.web.runs")
    assert list(runs._runs.values())[-1].whole()["held_out"] == losses[0]["losses"]


def test_a_picture_that_is_shown_several_times_is_held_out_wholly(comfy, data, hold_out):
    latents, captions = data
    shown = paired(comfy, [*latents, *latents], [*captions, *captions])
    for seed in range(6):
        split = hold_out(shown, 1, seed)
        assert len(split.images) == 4 and len(split.held_out) == 1
        assert not any(image.equal(split.held_out.images[0]) for image in split.images.images)
        place = next(n for n, one in enumerate(latents) if one["samples"].equal(split.held_out.images[0]))
        assert split.held_out.captions[0] is captions[place][0]
    assert hold_out(shown, 0, 0) is shown


def test_a_picture_and_what_is_known_as_its_mirror_image_are_held_out_together(comfy, data, hold_out):
    latents, captions = data
    names = ["cats/a.png", "dogs/a.png", "cats/b.png"]
    upright = [{**latent, "sara_picture": name} for latent, name in zip(latents, names)]
    mirrored = [{**latent, "samples": latent["samples"] + 0.5} for latent in upright]  # no VAE's is the exact mirror
    for seed in range(6):
        split = hold_out(paired(comfy, [*upright, *mirrored], [*captions, *captions]), 1, seed)
        (held,) = split.held_out.images
        (place,) = (n for n, one in enumerate(upright) if one["samples"].equal(held))
        others = [both[n]["samples"] for both in (upright, mirrored) for n in range(3) if n != place]
        assert all(image.equal(other) for image, other in zip(split.images.images, others, strict=True))


def test_a_copy_under_another_name_goes_with_its_picture_and_both_mirror_images(comfy, data, hold_out):
    (a, b, _), captions = data
    shown = {"a.png": a, "copy of a.png": a, "b.png": b}
    upright = [{**latent, "sara_picture": name} for name, latent in shown.items()]
    mirrored = [{**latent, "samples": latent["samples"] + 0.5} for latent in upright]
    for seed in range(6):
        split = hold_out(paired(comfy, [*upright, *mirrored], captions[:1] * 6), 1, seed)
        assert len(split.images) == (4 if split.held_out.images[0].equal(b["samples"]) else 2)


def test_a_batch_that_was_joined_does_not_count_as_the_first_one_s_picture(comfy, data, hold_out):
    latents, captions = data
    named = [{**latent, "sara_picture": "a.png"} for latent in latents]
    joined = comfy.execute("LatentBatch", samples1=named[0], samples2=named[1]).outputs[0]
    assert joined["sara_picture"] == "a.png" and len(joined["samples"]) == 2
    split = hold_out(paired(comfy, [joined], [captions[0]]), 1, 0)
    assert len(split.images) == len(split.held_out) == 1


def test_something_must_be_left_to_train_on(comfy, model, data, output):
    with pytest.raises(Exception, match="held_out is 3, but there are only 3 different pictures: hold out fewer"):
        train(comfy, model, data, held_out=3, **OPTIONS)
