"""A quick slice of `python dev.py bench fuzz`, and the fuzzer itself: it follows coverage and sees faults."""

import random
import runpy
import sys

import pytest
import torch

from benchmarks.fuzz_ import exploration
from benchmarks.fuzz_ import mutations
from benchmarks.fuzz_.exploration import Target, explore
from benchmarks.fuzz_.untrusted import targets as file_targets
from benchmarks.fuzz_.untrusted_states import COMMAND, LIBRARY, state_targets, with_node_target
from tests.support import toy_models

NAMES = (
    "positions", "delta file", "base identity", "LoRA, LyCORIS, .diff", "DoRA, OFT, GLoRA", "SHiRA",
    "Super-Tuning", "Super-Tuning with a LoRA", "whole model", "LT-SFT", "LT-SFT with whole weights", "authors' file",
    "LoRA in the state of a run", LIBRARY, COMMAND,
)  # fmt: skip
INPUTS = 250


def targets(folder):
    return [*file_targets(folder), *state_targets(folder)]


@pytest.fixture
def target(tmp_path):
    return {target.name: target for target in targets(tmp_path)}.__getitem__


def test_every_reader_is_a_target(tmp_path):
    assert tuple(target.name for target in targets(tmp_path)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_sound_files_are_accepted(tmp_path, target, name):
    findings = explore(target(name), 0, tmp_path)
    assert findings.accepted == len(target(name).seeds) and not findings.failures


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_hostile_files_give_our_own_error_or_sound_results(tmp_path, target, name):
    findings = explore(target(name), INPUTS, tmp_path, seed=1)
    assert not findings.failures
    assert findings.accepted < INPUTS or name == "base identity"


@pytest.mark.filterwarnings("ignore")
def test_a_hostile_snapshot_gives_our_own_error_in_the_node_and_leaves_the_model_alone(comfy):
    found = []

    def fuzz(target, folder):
        found.extend([explore(target, 0, folder), explore(target, INPUTS, folder, seed=1)])

    with torch.inference_mode():
        model = toy_models.sd15_model()
    before = toy_models.loaded_weights(model)
    with_node_target(comfy, model, fuzz)
    sound, hostile = found
    assert sound.accepted == 2 and hostile.accepted < INPUTS
    assert not sound.failures and not hostile.failures
    toy_models.assert_same_bits(toy_models.loaded_weights(model), before)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A reader with a fault behind five comparisons, in a file of its own that coverage is taken of."""
    source = tmp_path / "code" / "reader.py"
    source.parent.mkdir()
    source.write_text(
        "def read(path):\n"
        "    content = path.read_bytes()\n"
        + "".join(f"    if content[{place}:{place + 1}] != b'{letter}':\n        return\n"
                  for place, letter in enumerate("fault"))
        + "    raise RuntimeError('found')\n"
    )  # fmt: skip
    monkeypatch.setattr(exploration, "CODE", str(source.parent))
    read = runpy.run_path(str(source))["read"]
    return Target("planted", [b"....."], read, one_byte, (ValueError,))


def one_byte(content, choose):
    place = choose.randrange(len(content))
    return content[:place] + bytes([choose.randrange(97, 123)]) + content[place + 1 :]


def test_a_fault_behind_several_conditions_is_found_by_following_coverage(tmp_path, watched, monkeypatch):
    found = explore(watched, 3000, tmp_path)
    assert list(found.failures.values())[0][:5] == b"fault" and "RuntimeError: found" in next(iter(found.failures))
    monkeypatch.setattr(exploration, "CODE", "nothing")
    assert not explore(watched, 3000, tmp_path).failures  # by chance alone it takes twelve million


def test_the_same_seed_explores_the_same_inputs(tmp_path, watched):
    first, again = (explore(watched, 500, tmp_path, seed=3) for _ in range(2))
    assert (first.arcs, first.accepted) == (again.arcs, again.accepted)


def test_a_result_that_is_not_sound_is_a_failure(tmp_path):
    def unsound(path):
        raise AssertionError("positions out of order")

    target = Target("unsound", [b"x"], unsound, one_byte, (ValueError,))
    assert "AssertionError: positions out of order" in next(iter(explore(target, 0, tmp_path).failures))


def test_an_input_that_takes_too_long_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(exploration, "LONGEST_SECONDS", -1)
    target = Target("slow", [b"x"], lambda path: None, one_byte, ())
    assert next(iter(explore(target, 0, tmp_path).failures)).startswith("took ")


def test_tracing_ends_with_the_exploration(tmp_path, watched):
    before = sys.gettrace()
    explore(watched, 10, tmp_path)
    assert sys.gettrace() is before


@pytest.mark.parametrize("name", NAMES)
def test_mutations_take_anything(target, name):
    choose = random.Random(0)
    for content in (b"", b"\0", *target(name).seeds):
        for _ in range(200):
            content = target(name).mutate(content, choose)
            assert isinstance(content, bytes)


def test_most_changed_containers_are_still_containers(target):
    choose, seed = random.Random(0), target("delta file").seeds[0]
    files = [mutations.of_safetensors(seed, choose) for _ in range(300)]
    sound = 0
    for content in files:
        try:
            mutations._read_safetensors(content)
            sound += 1
        except (ValueError, KeyError, TypeError):
            pass
    assert sound > 200
