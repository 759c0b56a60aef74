"""A short slice of `python dev.py bench soak`, and what it is made of: its plan, its small disk, its odd files."""

import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks.soak_ import odd_files, plan, small_disk, turns
from benchmarks.soak_.actions import ACTIONS
from benchmarks.soak_.faults import FAULTS
from benchmarks.soak_.outcome import DONE
from benchmarks.soak_.promises import Promises
from devtools.comfyui.install import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system like Unix")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
TURNS = plan.round_length(ACTIONS, FAULTS)


def test_a_slice_of_the_soak(tmp_path):
    """Every action and every fault once, at a real server."""
    result = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.soak", "--turns", str(TURNS), "--seed", "1", "--json", str(result)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(result.read_text(encoding="utf-8"))
    assert report["violations"] == [] and report["turns"] == TURNS
    assert report["actions"].keys() == ACTIONS.keys() and report["faults"].keys() >= FAULTS.keys()
    assert report["endings"][DONE] > TURNS / 2 and report["resumed"] >= 1


def drawn(seed, number=3 * TURNS):
    chosen = itertools.islice(plan.turns(seed, list(ACTIONS), list(FAULTS)), number)
    return [(turn.number, turn.action, turn.fault, turn.choose.random()) for turn in chosen]


def test_what_is_done_comes_from_the_seed_alone():
    assert drawn(5) == drawn(5) and drawn(5) != drawn(6)
    assert drawn(5, 7) == drawn(5)[:7]


@pytest.mark.parametrize("seed", range(20))
def test_each_round_has_every_action_and_every_fault(seed):
    for begin in range(0, 3 * TURNS, TURNS):
        chosen = drawn(seed)[begin : begin + TURNS]
        assert {action for _, action, _, _ in chosen} == ACTIONS.keys()
        assert {fault for _, _, fault, _ in chosen} == {plan.NOTHING, *FAULTS}


@pytest.mark.parametrize("kind", odd_files.MAKERS)
def test_odd_files_are_put_everywhere_and_taken_away(tmp_path, kind):
    with odd_files.lying_about(tmp_path, b"x" * 100, [kind]):
        made = list(tmp_path.rglob(f"odd_{kind}*"))
        assert len(made) == len(odd_files.places(tmp_path))
        assert not any(path.is_file() and path.stat().st_size == 100 and kind != "unreadable" for path in made)
    assert not list(tmp_path.rglob("odd_*"))


@LINUX
def test_a_filled_disk_has_no_room(tmp_path):
    """In a process of its own, whose small disk goes with it."""
    program = (
        "import sys; from pathlib import Path; from benchmarks.soak_ import small_disk as disk\n"
        "folder = Path(sys.argv[1])\n"
        "if not disk.mounted_on(folder): print('none'); sys.exit()\n"
        "with disk.filled(folder, 100_000):\n"
        "    try: Path(folder, 'large').write_bytes(bytes(200_000)); print('room')\n"
        "    except OSError as error: print(error.errno)\n"
        "Path(folder, 'large').write_bytes(bytes(200_000))\n"
        "disk.taken_off(folder); folder.rmdir()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "none" or (done.stdout.strip() == "28" and not tmp_path.exists())


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="nothing is forbidden to the super-user")
def test_without_a_small_disk_folders_take_no_names(tmp_path):
    (tmp_path / "sara").mkdir()
    with small_disk.read_only(tmp_path), pytest.raises(PermissionError):
        (tmp_path / "sara" / "x").touch()
    (tmp_path / "sara" / "x").touch()


def test_when_half_of_the_disk_is_used_the_oldest_files_go_but_what_actions_take_from(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "SIZE", 2 * 5 * 100)
    for age, name in enumerate(["sara/trained_1", "sara/trained_2", "loras/old", "checkpoints/baked", "loras/new"]):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(150))
        os.utime(path, (age, age))
    promises = Promises(tmp_path)
    promises.keep("loras/old.safetensors", "saved")
    turns.make_room(SimpleNamespace(output=tmp_path), promises)
    left = {path.name for path in tmp_path.rglob("*.safetensors")}
    assert left == {"trained_1.safetensors", "trained_2.safetensors", "baked.safetensors"} and len(promises) == 0
