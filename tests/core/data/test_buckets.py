"""Which part of a picture is trained, in which size."""

import pytest

from sara_core.data.buckets import LONGEST, STEP, bucket_sizes, cut
from sara_core.errors import TrainingError


@pytest.mark.parametrize("resolution", [64, 128, 512, 768, 1024])
def test_buckets_have_about_as_many_pixels_as_the_square(resolution):
    sizes = bucket_sizes(resolution)
    assert (resolution, resolution) in sizes and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert (height, width) in sizes
        assert width % STEP == height % STEP == 0 and width * height <= resolution**2 < (width + STEP) * (height + STEP)
        assert max(width, height) <= LONGEST * min(width, height)


def test_the_buckets_of_512():
    wide = [(512, 512), (576, 448), (640, 384), (768, 320), (1024, 256)]
    assert sorted(bucket_sizes(512)) == sorted({size for w, h in wide for size in ((w, h), (h, w))})


CUTS = {
    "a square": ((300, 300), True, (512, 512), (0, 0, 300, 300)),
    "a photograph": ((4000, 3000), True, (576, 448), (500 / 7, 0, 4000 - 500 / 7, 3000)),
    "a photograph upright": ((3000, 4000), True, (448, 576), (0, 500 / 7, 3000, 4000 - 500 / 7)),
    "a bucket's own size": ((640, 384), True, (640, 384), (0, 0, 640, 384)),
    "a strip": ((10, 1000), True, (256, 1024), (0, 480, 10, 520)),
    "a photograph as a square": ((4000, 3000), False, (512, 512), (500, 0, 3500, 3000)),
    "one pixel": ((1, 1), False, (512, 512), (0, 0, 1, 1)),
}


@pytest.mark.parametrize("what", CUTS)
def test_the_middle_is_taken_in_the_bucket_that_loses_least(what):
    picture, buckets, size, box = CUTS[what]
    taken = cut(picture, 512, buckets)
    assert taken.size == size and taken.box == pytest.approx(box)


def test_a_picture_is_blurred_if_the_part_that_is_left_is_small():
    assert not cut((342, 342), 512, True).is_blurred and cut((341, 341), 512, True).is_blurred
    assert cut((2000, 340), 512, False).is_blurred


@pytest.mark.parametrize("resolution", [0, -64, 32, 500])
def test_a_resolution_without_buckets_is_refused(resolution):
    with pytest.raises(TrainingError, match=f"multiple of 64, not {resolution}"):
        cut((100, 100), resolution, False)
