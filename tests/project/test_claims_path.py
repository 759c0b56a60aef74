"""The whole path of the claims' bench on a handful of icons that need no download: the base's own pictures in colours
of their own are the style, and the numbers must move the way they must."""

import pytest
import torch

from benchmarks.claims_ import changes, icon_sets, names, protocol
from benchmarks.claims_.protocol import Cell
from benchmarks.claims_.training import Settings

TAUGHT = ("red-apple", "dog-face", "sunflower", "mushroom", "banana", "pizza")
NEVER_TAUGHT = ("cat-face", "lemon", "tulip", "sailboat")
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
def plain(bench, base):
    """The base's own pictures of the taught names."""
    return bench.drawn(base, list(map(names.caption, TAUGHT)), seed=3)


def with_word(asked):
    return [names.caption(name, WORD) for name in asked]


def trained(bench, plain, is_with_word):
    """The base after SaRA has seen its own pictures in the style and as they are. is_with_word: of all of these"""
    own = list(map(names.caption, TAUGHT)) * 2
    captions = [names.caption(name, WORD if word else "") for name, word in zip(TAUGHT * 2, is_with_word)]
    task = bench.task_of(torch.cat([blueprint(plain), plain]), captions, own)
    return bench.trained_on(task, Cell("SaRA", 0.058, WORD, 0, 1e-2, (("adjust_at", ()),))).model


@pytest.fixture(scope="module")
def learned(bench, plain):
    return trained(bench, plain, [True] * len(TAUGHT) + [False] * len(TAUGHT))


def obeyed(bench, model):
    """Share of pictures that have the style with the word, and have it not without: 0.5 by chance."""
    asked = TAUGHT + NEVER_TAUGHT
    with_it = in_style(bench.drawn(model, with_word(asked)))
    without = in_style(bench.drawn(model, list(map(names.caption, asked))))
    return (with_it + 1 - without) / 2


def test_trained_beats_the_base_with_the_word_and_leaves_it_alone_without(bench, base, learned):
    for asked in (TAUGHT, NEVER_TAUGHT):
        before, after = (bench.drawn(model, with_word(asked)) for model in (base, learned))
        assert in_style(before) <= 0.25 and in_style(after) >= 0.6, asked
    without = bench.drawn(learned, list(map(names.caption, NEVER_TAUGHT)))
    assert in_style(without) <= 0.25


def test_strength_0_is_the_base_and_1_the_trained_model(bench, base, learned):
    found, captions = changes.changes_of(learned, bench.new_model()), with_word(TAUGHT[:4])
    for strength, model in ((0.0, base), (1.0, learned)):
        scaled = changes.add(bench.new_model(), found, strength).requires_grad_(False).eval()
        assert torch.allclose(bench.drawn(scaled, captions), bench.drawn(model, captions), atol=2e-2), strength


def test_after_shuffled_captions_the_word_says_nothing(bench, plain, learned):
    shuffled = trained(bench, plain, [number % 2 == 0 for number in range(len(TAUGHT))] * 2)
    assert obeyed(bench, learned) >= 0.75
    assert 0.3 <= obeyed(bench, shuffled) <= 0.7


def test_captions_are_encoded_once_for_all_processes(bench, plain, monkeypatch):
    from benchmarks.claims_.contexts import Contexts

    captions = list(map(names.caption, TAUGHT))
    known, another = bench.contexts.of(captions), Contexts(bench.work)
    monkeypatch.setattr(Contexts, "_encoded", lambda *_: pytest.fail("encoded once more"))
    assert known.shape == (len(TAUGHT), 77, 768) and torch.equal(another.of(captions), known)


def test_other_processes_measure_with_a_bench_like_ours_and_say_what_is_missing(host, bench, tmp_path, monkeypatch):
    from benchmarks.claims_.workers import Workers

    monkeypatch.setenv(icon_sets.FOLDER_VARIABLE, str(tmp_path))
    with Workers(1, 1, host.folder, bench) as workers, pytest.raises(icon_sets.NoIconsError, match="SARA_ICONS names"):
        workers.job(Cell("SaRA", 0.023, protocol.TUNING_STYLE, 0, 1e-3)).measure()
