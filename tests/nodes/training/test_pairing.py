"""LATENT and CONDITIONING inputs become images with their captions, also by way of core's own dataset nodes."""

import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def pairing(comfy):
    return comfy.pack_module("nodes.host.training.pairing")


def latent(*numbers, size=(8, 8)):
    """A LATENT whose images are filled with these numbers."""
    return {"samples": torch.stack([torch.full((4, *size), float(number)) for number in numbers])}


def caption(number, **options):
    """A CONDITIONING filled with this number."""
    return [[torch.full((1, 77, 768), float(number)), options]]


def matches(pairs):
    return [(int(image.mean()), int(tensor.mean())) for image, (tensor, _) in zip(pairs.images, pairs.captions)]


ONE_EACH = [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("latents, positive, expected", [
    ([latent(1), latent(2), latent(3)], [caption(1), caption(2), caption(3)], ONE_EACH),
    ([latent(1, 2, 3)], [caption(1), caption(2), caption(3)], ONE_EACH),
    ([latent(1), latent(2), latent(3)], [caption(1) + caption(2) + caption(3)], ONE_EACH),
    ([latent(1, 2, 3)], [caption(1) + caption(2) + caption(3)], ONE_EACH),
    ([latent(1, 2), latent(3, size=(8, 16))], [caption(1), caption(2), caption(3)], ONE_EACH),
    ([latent(1, 2), latent(3, size=(8, 16))], [caption(1) + caption(2), caption(3)], ONE_EACH),
    ([latent(1, 2), latent(3)], [caption(5), caption(6)], [(1, 5), (2, 5), (3, 6)]),
    ([latent(1, 2), latent(3)], [caption(7)], [(1, 7), (2, 7), (3, 7)]),
], ids=["lists", "a batch and a list", "a list and one conditioning", "a batch and one conditioning", "mixed sizes",
        "buckets", "a caption per latent", "one for all"])
def test_every_image_gets_its_caption(pairing, latents, positive, expected):
    pairs = pairing.pair(latents, positive)
    assert matches(pairs) == expected
    assert all(image.shape[:2] == (1, 4) for image in pairs.images)


@pytest.mark.parametrize("latents, positive, message", [
    ([latent(1), latent(2), latent(3)], [caption(1), caption(2)], "3 images but 2 captions"),
    ([latent(1)], [caption(1), caption(2)], "1 image but 2 captions"),
    ([latent(1, 2, 3)], [caption(1) + caption(2)], "3 images but 2 captions. Give"),
    ([latent(1, 2, 3), latent(4)], [caption(1) + caption(2), caption(3) + caption(4)], "2 captions in part 1"),
    ([], [caption(1)], "no image"),
    ([{"samples": torch.zeros(0, 4, 8, 8)}], [caption(1)], "no image"),
])
def test_counts_that_differ_are_named(pairing, latents, positive, message):
    with pytest.raises(Exception, match=message) as raised:
        pairing.pair(latents, positive)
    assert type(raised.value).__name__ == "TrainingError"


def test_resolution_bucket_keeps_images_and_captions_together(comfy, pairing):
    sizes = [(8, 8), (8, 16), (8, 8), (16, 8), (8, 16), (8, 8)]
    latents = [latent(number, size=size) for number, size in enumerate(sizes)]
    conditioning = [caption(number) for number in range(len(sizes))]
    buckets = comfy.execute("ResolutionBucket", latents=latents, conditioning=conditioning).outputs
    pairs = pairing.pair(*buckets)
    assert sorted(matches(pairs)) == [(number, number) for number in range(len(sizes))]
    assert {tuple(image.shape) for image in pairs.images} == {(1, 4, *size) for size in sizes}


@pytest.fixture
def folder(comfy):
    """A folder of pictures in kohya's layout: the number in a folder's name says how often its pictures are used."""
    path = comfy.base / "input" / "style"
    for where, grey, size, text in (("", 10, 64, "a cat"), ("3_rare", 20, 32, "a dog"), ("1_common", 30, 64, None)):
        (path / where).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (grey,) * 3).save(path / where / f"{grey}.png")
        if text:
            (path / where / f"{grey}.txt").write_text(text, encoding="utf-8")
    return path.name


def test_core_loads_repeats_and_puts_a_trigger_before_every_caption(comfy, pairing, folder):
    """Why the pack has no inputs for these: Load Image-Text repeats, Concatenate Text prefixes, pairs survive."""
    images, texts = comfy.execute("LoadImageTextDataSetFromFolder", folder=folder).outputs
    texts = [comfy.execute("StringConcatenate", string_a="sketch style, ", string_b=text).outputs[0] for text in texts]
    greys = [round(float(image.mean()) * 255) for image in images]
    expected = {10: "sketch style, a cat", 20: "sketch style, a dog", 30: "sketch style, "}
    assert sorted(greys) == [10, 20, 20, 20, 30]
    assert texts == [expected[grey] for grey in greys]

    latents = [latent(grey, size=tuple(image.shape[1:3])) for grey, image in zip(greys, images)]
    numbers = {text: grey for grey, text in expected.items()}
    pairs = pairing.pair(latents, [caption(numbers[text]) for text in texts])
    assert all(image == text for image, text in matches(pairs)) and len(pairs) == 5


@pytest.mark.parametrize("options, what", [
    ({"control": object()}, "ControlNet"),
    ({"mask": torch.ones(1, 8, 8)}, "a mask"),
    ({"area": (8, 8, 0, 0)}, "an area"),
    ({"start_percent": 0.0, "end_percent": 0.5}, "a range of steps"),
    ({"clip_start_percent": 0.2}, "a range of steps"),
])
def test_what_training_cannot_follow_is_refused(pairing, options, what):
    with pytest.raises(Exception, match=what) as raised:
        pairing.pair([latent(1)], [caption(1, **options)])
    assert type(raised.value).__name__ == "UnsupportedModelError"


def test_a_caption_for_all_steps_is_accepted(pairing):
    pairing.pair([latent(1)], [caption(1, start_percent=0.0, end_percent=1.0)])


def test_captions_in_a_batch_are_refused(pairing):
    with pytest.raises(Exception, match="2 captions in one batch"):
        pairing.pair([latent(1, 2)], [[[torch.zeros(2, 77, 768), {}]]])


def test_the_numbers_of_a_batch_do_not_matter(comfy, pairing):
    part = comfy.execute("LatentFromBatch", samples=latent(1, 2, 3), batch_index=1, length=2).outputs[0]
    assert "batch_index" in part
    assert matches(pairing.pair([part], [caption(1)])) == [(2, 1), (3, 1)]


def masked(comfy, samples, mask):
    """As Set Latent Noise Mask gives it; mask: [n, height, width], of the pictures' size."""
    return comfy.execute("SetLatentNoiseMask", samples=samples, mask=mask).outputs[0]


def left_half(size):
    mask = torch.zeros(1, size, size)
    mask[..., : size // 2] = 1
    return mask


def test_every_image_gets_its_mask_in_its_own_size(comfy, pairing):
    masks = torch.cat([left_half(64), torch.ones(1, 64, 64), 1 - left_half(64)])
    pairs = pairing.pair([masked(comfy, latent(1, 2, 3), masks), latent(4)], [caption(1)])
    assert [None if mask is None else tuple(mask.shape) for mask in pairs.masks] == [(1, 4, 8, 8), None] * 2
    first, _, third, _ = pairs.masks
    assert torch.equal(first, left_half(8).expand(1, 4, 8, 8)) and torch.equal(third, 1 - first)
    assert pairs.describe() == "4 images of 1 size, one caption for all, 2 with a mask"


def test_one_mask_serves_all_images_of_its_latents(comfy, pairing):
    pairs = pairing.pair([masked(comfy, latent(1, 2), left_half(64))], [caption(1)])
    assert torch.equal(*pairs.masks) and pairs.masks[0].mean() == 0.5


def test_masks_that_leave_everything_are_none(comfy, pairing):
    assert not pairing.pair([masked(comfy, latent(1, 2), torch.ones(1, 64, 64))], [caption(1)]).masks


@pytest.mark.parametrize("mask, message", [
    (torch.zeros(1, 64, 64), "0 everywhere.*Invert Mask"),
    (torch.full((1, 64, 64), -1.0), "0 everywhere"),
    (torch.full((1, 64, 64), float("nan")), "not numbers"),
    (torch.cat([torch.ones(1, 64, 64), torch.zeros(1, 64, 64)]), "of a class image is 0 everywhere"),
])
def test_masks_that_leave_nothing_or_are_no_numbers_are_refused(comfy, pairing, mask, message):
    with pytest.raises(Exception, match=message) as raised:
        pairing.pair([masked(comfy, latent(1, 2), mask)], [caption(1)], "class image")
    assert type(raised.value).__name__ == "TrainingError"


def test_a_mask_for_other_latents_is_refused_with_both_shapes(comfy, pairing):
    sound = {"samples": torch.randn(1, 64, 32)}
    with pytest.raises(Exception, match=r"\[1, 1, 64, 64\], does not fit its latents, \[1, 64, 32\]"):
        pairing.pair([masked(comfy, sound, left_half(64))], [caption(1)])


def test_the_masks_are_part_of_what_a_run_is_resumed_with(comfy, pairing):
    def digest(*latents):
        return pairing.read_training_data(list(latents), [caption(1)]).digest()

    images = latent(1, 2)
    other = masked(comfy, images, left_half(64))
    assert digest(images) == digest(masked(comfy, images, torch.ones(1, 64, 64)))
    assert len({digest(images), digest(other), digest(masked(comfy, images, 1 - left_half(64)))}) == 3


def test_class_images_need_their_captions(pairing):
    with pytest.raises(Exception, match="'class_latents' is connected but 'class_positive' is not"):
        pairing.read_training_data([latent(1)], [caption(1)], class_latents=[latent(1)])


def test_class_captions_alone_are_other_captions_of_the_same_images(pairing):
    plain = pairing.read_training_data([latent(1, 2)], [caption(1)])
    data = pairing.read_training_data([latent(1, 2)], [caption(1)], class_positive=[caption(5)])
    assert data.keeps_own and not plain.keeps_own
    assert all(map(torch.equal, data.class_images.images, data.images.images))
    assert [entry[0].mean().item() for entry in data.class_images.captions] == [5, 5]
    assert data.batch_shape(3) == (6, 4, 8, 8)
    assert data.describe(steps=30, images_per_step=4).startswith(
        "2 images of 1 size, one caption for all; the model is kept near what it makes of them under other captions; "
    )
    others = pairing.read_training_data(
        [latent(1, 2)], [caption(1)], class_latents=[latent(1, 2)], class_positive=[caption(5)]
    )
    assert len({data.digest(), plain.digest(), others.digest()}) == 3
    with pytest.raises(Exception, match="2 images but 3 captions"):
        pairing.read_training_data([latent(1, 2)], [caption(1)], class_positive=[caption(1), caption(2), caption(3)])


def test_what_is_held_out_is_not_seen_under_other_captions(pairing, comfy):
    hold_out = comfy.pack_module("nodes.host.training.held_out").hold_out
    data = pairing.read_training_data(
        [latent(1, 2, 3)], [caption(1)], class_positive=[caption(4), caption(5), caption(6)]
    )
    rest = hold_out(data, 1, seed=0)
    assert len(rest.held_out) == 1 and len(rest.class_images) == 2
    assert all(map(torch.equal, rest.class_images.images, rest.images.images))
    assert [entry[0].mean() - 3 for entry in rest.class_images.captions] == [x.mean() for x in rest.images.images]


def test_counts_of_class_images_and_captions_that_differ(pairing):
    with pytest.raises(Exception, match="3 class images but 2 captions"):
        pairing.read_training_data(
            [latent(1)], [caption(1)], class_latents=[latent(1, 2, 3)], class_positive=[caption(1), caption(2)]
        )


def test_caption_dropout_needs_the_empty_caption(pairing):
    images = ([latent(1)], [caption(1)])
    with pytest.raises(Exception, match="empty text to 'unconditional'"):
        pairing.read_training_data(*images, caption_dropout=0.1)
    with pytest.raises(Exception, match="'unconditional' has 2 captions"):
        pairing.read_training_data(*images, [caption(0), caption(1)], caption_dropout=0.1)
    assert pairing.read_training_data(*images, [caption(0)], caption_dropout=0.1).unconditional[0].mean() == 0
    assert pairing.read_training_data(*images, [caption(0)]).unconditional is None


def test_room_is_asked_for_the_largest_batch(pairing):
    latents, positive = [latent(1), latent(2, size=(16, 8))], [caption(1)]
    alone = pairing.read_training_data(latents, positive)
    with_class = pairing.read_training_data(
        latents, positive, class_latents=[latent(1, size=(32, 32))], class_positive=positive
    )
    assert alone.batch_shape(3) == (3, 4, 16, 8)
    assert with_class.batch_shape(3) == (6, 4, 32, 32)


def test_the_data_is_described_in_one_line(pairing):
    data = pairing.read_training_data(
        [latent(1, 2), latent(3, size=(16, 8))], [caption(1), caption(2), caption(3)],
        class_latents=[latent(1, 2)], class_positive=[caption(1)],
    )
    assert data.describe(steps=30, images_per_step=4) == (
        "3 images of 2 sizes, each with its own caption; 2 class images of 1 size, one caption for all; "
        "30 steps of 4 images show each 40 times"
    )
