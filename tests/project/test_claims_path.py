"""The whole path of the claims' bench on a handful of icons that need no download: the base's own pictures in colours
of their own are the style, and the numbers must move the way they must."""

import pytest
import torch

from benchmarks.claims_ import changes, names
from benchmarks.claims_.protocol import Cell
from benchmarks.claims_.training import Settings

TAUGHT = ("red-apple", "dog-face", "sunflower", "mushroom", "banana", "pizza", "penguin", "rocket")
NEVER_TAUGHT = ("cat-face", "lemon", "tulip", "sailboat", "owl", "teapot", "snowman", "umbrella")
OTHERS = (
    "automobile", "beans", "bone", "butter", "chicken", "collision", "crossed-fingers", "eggplant", "frog",
    "green-square", "jellyfish", "letter-w", "minibus", "musical-score", "page-facing-up", "plus", "radio",
    "snowboarder", "taurus", "tornado",
)  # fmt: skip
CHOICE = sorted({*TAUGHT, *NEVER_TAUGHT, *OTHERS})
WORD = "blueprint"
INK, PAPER = torch.tensor([1.0, 1.0, 0.9]), torch.tensor([0.1, 0.2, 0.6])


def blueprint(pictures):
    """Light on blue, float [n, 64, 64, 3]."""
    dark = 1 - pictures.mean(-1, keepdim=True)
    return dark * INK + (1 - dark) * PAPER


def in_style(pictures):
    """Share of pictures whose corners are the style's blue rather than white."""
    ground = pictures[:, [2, 2, -3, -3], [2, -3, 2, -3]].mean(1)
    return ((ground - PAPER).norm(dim=1) < (ground - 1).norm(dim=1)).float().mean().item()


@pytest.fixture(scope="module")
def bench(tmp_path_factory, comfy):
    from benchmarks.claims_.bench import Bench

    return Bench(tmp_path_factory.mktemp("claims"), Settings(steps=80, batch=4, dropout=0.0))


@pytest.fixture(scope="module")
def base(bench):
    return bench.new_model().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def style(bench, base):
    """The taught names' pictures in the style."""
    return blueprint(bench.drawn(base, list(map(names.caption, TAUGHT)), seed=3))


def with_word(asked):
    return [names.caption(name, WORD) for name in asked]


def trained(bench, style, order):
    """The base after SaRA has seen the pictures, the picture of name k with the caption of name order[k]."""
    asked = [TAUGHT[number] for number in order]
    task = bench.task_of(style, with_word(asked), list(map(names.caption, asked)))
    return bench.trained_on(task, Cell("SaRA", 0.058, WORD, 0, 4e-3, (("adjust_at", ()),))).model


@pytest.fixture(scope="module")
def learned(bench, style):
    return trained(bench, style, range(len(TAUGHT)))


def right(bench, pictures, asked):
    return bench.verdicts.is_right(pictures, asked, CHOICE, among=len(CHOICE)).float().mean().item()


def test_trained_beats_the_base_with_the_word_and_leaves_it_alone_without(bench, base, learned):
    for asked in (TAUGHT, NEVER_TAUGHT):
        before, after = (bench.drawn(model, with_word(asked)) for model in (base, learned))
        assert in_style(before) <= 0.25 and in_style(after) >= 0.75, asked
    plain = bench.drawn(learned, list(map(names.caption, NEVER_TAUGHT)))
    assert in_style(plain) <= 0.25


def test_strength_0_is_the_base_and_1_the_trained_model(bench, base, learned):
    found, captions = changes.changes_of(learned, bench.new_model()), with_word(TAUGHT[:4])
    for strength, model in ((0.0, base), (1.0, learned)):
        scaled = changes.add(bench.new_model(), found, strength).requires_grad_(False).eval()
        assert torch.allclose(bench.drawn(scaled, captions), bench.drawn(model, captions), atol=2e-2), strength


def test_after_shuffled_captions_the_right_name_is_no_better_than_chance(bench, style, learned):
    shuffled = trained(bench, style, [(number + 3) % len(TAUGHT) for number in range(len(TAUGHT))])
    scores = [right(bench, blueprint_taken_off(bench.drawn(model, with_word(TAUGHT))), TAUGHT)
              for model in (learned, shuffled)]  # fmt: skip
    assert scores[0] >= 0.5 and scores[1] <= 0.25, scores


def blueprint_taken_off(pictures):
    """As the judge knows pictures: dark on white."""
    light = ((pictures - PAPER) @ (INK - PAPER) / (INK - PAPER).square().sum()).clamp(0, 1)
    return (1 - light)[..., None].expand(-1, -1, -1, 3)
