"""Kits for a GPU machine without network (devtools/gpu_kit/): what is in them, that packing keeps every bit, and that
run.sh gives the measurement what it needs and leaves its results where they are looked for."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.claims_ import icon_sets, plan, protocol, render, so_far, tables
from devtools.gpu_kit import claims, comfyui_files, host as host_kit, icons, kit as kits, weights, wheels
from devtools.packer import tracked_files
from devtools.prepared import HostError
from devtools.progress import Progress

KINDS = {"claims": claims, "host": host_kit}

LINES = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "claims.jsonl"


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 3, bytes(range(255)) * 3])
def test_packed_weights_are_the_same_to_the_bit(tmp_path, content):
    file = tmp_path / "root" / "some" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    weights.pack(tmp_path / "root", ["some/model.safetensors"], tmp_path / "packed")
    weights.unpack(tmp_path / "packed", tmp_path / "back")
    assert (tmp_path / "back" / "some" / "model.safetensors").read_bytes() == content


# Less than a row of the sheet, a whole one, and one more.
@pytest.mark.parametrize("count", [3, icons.COLUMNS, icons.COLUMNS + 1])
def test_packed_icons_are_the_same_to_the_bit(tmp_path, count):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    names = [f"name-{number}" for number in range(count)]
    kept = render.kept(icon_sets.OPENMOJI, tmp_path, 16)
    np.savez_compressed(kept, names=np.array(names), pixels=pixels)
    icons.pack(kept, tmp_path / "packed")
    icons.unpack(tmp_path / "packed", tmp_path / "back")
    found, back = render.pictures(icon_sets.OPENMOJI, tmp_path / "back", 16)
    assert found == names and back.dtype == np.uint8 and np.array_equal(back, pixels)


@pytest.mark.parametrize("name", KINDS)
def test_what_a_kit_takes_of_the_checkout_is_there(name):
    kind = KINDS[name]
    taken = kits.checkout_files(*kind.CHECKOUT)
    for wanted in kind.CHECKOUT:
        assert any(file == wanted or file.startswith(wanted + "/") for file in taken), wanted
    assert set(kind.WEIGHTS) <= set(tracked_files())
    assert not [file for file in taken if file.endswith((".safetensors", ".png"))]
    scripts = (kits.SCRIPTS / f"{name}.sh").read_text(encoding="utf-8") + (kits.SCRIPTS / "begin.sh").read_text("utf-8")
    modules = re.findall(r" -m ([\w.]+)", scripts)
    assert len(modules) >= 2
    for module in modules:
        assert importlib.util.find_spec(module), module
        assert {f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__main__.py"} & set(taken), module


@pytest.mark.parametrize("name", KINDS)
def test_packages_are_pinned_and_none_is_both_brought_and_asked_for(name):
    pinned = [re.fullmatch(r"([a-z0-9-]+)==[0-9.]+", package)[1] for package in KINDS[name].PACKAGES]
    assert len(pinned) == len(set(pinned))
    assert not {package.replace("-", "_") for package in pinned} & set(KINDS[name].NEEDS)


def test_of_comfyui_only_what_is_needed_is_taken(host):
    library, server = comfyui_files.library(host.folder), comfyui_files.server(host.folder)
    for names in (library, server):
        assert len(names) == len(set(names)) and all((host.folder / name).is_file() for name in names)
        assert {"comfy/sd.py", "comfy/sd1_tokenizer/vocab.json", "comfy/sd1_clip_config.json", "LICENSE"} <= set(names)
    assert {"main.py", "nodes.py", "server.py", "comfy_extras/nodes_train.py", "alembic.ini"} <= set(server)
    assert sum((host.folder / name).stat().st_size for name in server) < 15e6


def test_what_a_user_keeps_in_comfyui_stays_there(tmp_path):
    own = (
        "models/checkpoints/mine.safetensors", "custom_nodes/pack/nodes.py", "output/a.txt", "user/settings.json",
        "venv/lib/module.py", "comfy/text_encoders/large_tokenizer/vocab.json",
    )  # fmt: skip
    needed = ("main.py", "comfy/sd.py", "comfy/text_encoders/large.py", "LICENSE", "node_helpers.py")
    for name in (*own, *needed):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(comfyui_files.LARGEST_TOKENIZER + 1))
    assert comfyui_files.server(tmp_path) == sorted(needed)
    assert comfyui_files.library(tmp_path) == sorted(set(needed) - {"main.py"})


def test_a_wheel_is_unpacked_without_compiled_kernels_that_nothing_calls(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in ("comfy_kitchen/a.py", "comfy_kitchen/b/_C.so", "other/_C.so", "other.dist-info/METADATA"):
            wheel.writestr(name, name)
    wheels.unpack(tmp_path / "a.whl", tmp_path / "site")
    assert sorted(wheels.files(tmp_path / "site")) == ["comfy_kitchen/a.py", "other.dist-info/METADATA", "other/_C.so"]


def test_the_stub_of_av_is_imported_and_not_used(tmp_path):
    (tmp_path / "av").mkdir()
    shutil.copy(host_kit.STUB, tmp_path / "av" / "__init__.py")
    script = (
        "import av, av.container.input\n"
        "from av.video.frame import VideoFrame\n"
        "class Own(av.AudioFrame): pass\n"
        "for use in (VideoFrame, Own, av.open):\n"
        "    try: use('a file')\n"
        "    except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.count("There is no video here") == 3, done.stderr


def test_a_kit_needs_a_new_folder_and_must_not_be_large(tmp_path, monkeypatch):
    kit = kits.Kit(tmp_path / "kit", Progress())
    (kit.folder / "part").write_bytes(bytes(1000))
    assert kit.finish() == 1000
    monkeypatch.setattr(kits, "MOST_BYTES", 999)
    with pytest.raises(HostError, match="MiB"):
        kit.finish()
    with pytest.raises(HostError, match="not empty"):
        kits.Kit(kit.folder, Progress())


# Plays the measurement, and is Python otherwise.
PLAYED = """#!/usr/bin/env bash
case "$*" in
*"-m benchmarks.claims_.so_far"*) echo "a table" ;;
*"-m benchmarks."*)
  printf '%s\\n' "$PWD" "$PYTHONPATH" "$COMFYUI_PATH" "$@" >"$OUT/asked"
  while [ "$1" != --json ]; do shift; done
  [ "$2" != "$OUT/claims.jsonl" ] || wc -l <"$2" >"$OUT/gone-on-with"
  echo '{"another": "line"}' >>"$2" ;;
*) exec REAL "$@" ;;
esac
"""


@pytest.fixture
def build(tmp_path):
    """A function: a kind of kit → its folder, with nothing of ComfyUI, of packages and of weights in it."""
    (tmp_path / "empty").mkdir()
    python = tmp_path / "python"
    python.write_text(PLAYED.replace("REAL", sys.executable), encoding="utf-8")
    python.chmod(0o755)

    def built(name: str, needs=("json",)) -> Path:
        kit = kits.Kit(tmp_path / name, Progress())
        kit.add_script(name, needs)
        kit.add_checkout("devtools/__init__.py", "devtools/gpu_kit")
        for part in ("comfyui", "site"):
            kit.add_archive(part, tmp_path / "empty", [])
        for part in ("weights", "icons"):
            (kit.folder / part).mkdir()
        return kit.folder

    return built


def run(folder: Path, *arguments: str, out: Path) -> subprocess.CompletedProcess:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": str(folder.parent / "python"), "OUT": str(out)}
    return subprocess.run(
        ["bash", str(folder / "run.sh"), *arguments], env=settings, capture_output=True, text=True, timeout=120
    )


linux = pytest.mark.skipif(sys.platform != "linux", reason="kits are for Linux")


@linux
def test_the_kit_of_the_claims_goes_on_from_the_lines_beside_it(build, tmp_path):
    folder, out = build("claims"), tmp_path / "out"
    (folder / "claims.jsonl").write_text('{"first": 1}\n{"second": 2}\n', encoding="utf-8")
    done = run(folder, "100", "--tier", "T2", out=out)
    assert done.returncode == 0, done.stdout + done.stderr
    where, path, comfyui, *asked = (out / "asked").read_text(encoding="utf-8").splitlines()
    assert (where, path, comfyui) == tuple(str(folder / "tree" / part) for part in ("checkout", "site", "comfyui"))
    assert asked[:4] == ["-m", "benchmarks.claims", "--device", "cuda"]
    assert asked[4:6] == ["--processes", str(len(os.sched_getaffinity(0)))] and asked[-2:] == ["--tier", "T2"]
    assert len((out / "claims.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert (out / "so-far.md").read_text(encoding="utf-8") == "a table\n"
    # Once more: from its own lines, which are newer than those beside it.
    assert run(folder, "100", out=out).returncode == 0
    assert (out / "gone-on-with").read_text(encoding="utf-8").strip() == "3"


@linux
def test_the_kit_of_the_host_leaves_a_report(build, tmp_path):
    folder, out = build("host"), tmp_path / "out"
    done = run(folder, "200", "--modes", "plain", out=out)
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, _, *asked = (out / "asked").read_text(encoding="utf-8").splitlines()
    options = dict(zip(asked[2::2], asked[3::2]))
    assert options["--comfyui"] == str(folder / "tree" / "comfyui") and options["--modes"] == "plain"
    assert 2 < float(options["--minutes"]) <= 3
    assert (out / "gpu-host.json").is_file()


@linux
def test_a_limit_that_unpacking_uses_up_is_none_that_is_missing(build, tmp_path):
    done = run(build("host"), "1", out=tmp_path / "out")
    assert "invalid" not in done.stdout + done.stderr and done.returncode in (0, 124)


@linux
def test_a_kit_says_what_is_wrong(build, tmp_path):
    folder = build("host", needs=("json", "no_such_module", "no_other_module"))
    assert run(folder, "--modes", out=tmp_path / "out").returncode == 2
    done = run(folder, "100", out=tmp_path / "out")
    assert done.returncode == 1 and "lacks no_such_module no_other_module" in done.stdout
    assert not (tmp_path / "out" / "asked").exists()


def test_archives_name_nobody(build):
    with tarfile.open(build("host") / "checkout.tar.xz") as tar:
        members = tar.getmembers()
    assert {(one.uid, one.gid, one.uname, one.gname) for one in members} == {(0, 0, "", "")}


def test_the_lines_so_far_are_summed_up():
    known = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    tries = [line for line in known if line.get("style") == protocol.TUNING_STYLE and line["seed"] == plan.TUNING_SEED]
    cells = [{**tries[0], "style": protocol.STYLES[0], "seed": seed} for seed in range(3)]
    named = {**cells[0], "method": "LoRA", "options": [["prior", 0.3]]}
    first = [line for line in known if line.get("seed") == plan.TUNING_SEED + 1 and line["rate"] == 0.01][:1]
    no_try, unnamed = {**tries[0], "seed": plan.TUNING_SEED + 1}, {**cells[0], "options": [["rule", "a rule"]]}
    others = [no_try, unnamed, {"part": "another"}]
    text = so_far.report([*tries, *cells, named, *first, *others])
    assert text[0] == f"{len(tries)} tries, 4 cells, 3 other lines" and len(text) == 1 + len(tries) + 2
    assert f"| {cells[0]['method']} |" in text[-2] and "| LoRA, kept near |" in text[-2]
    assert "| 1 | as shipped | 0.01 | -0.030 |" in text[-1]
    figures = {name: 0.25 for name in tables.FIGURES}
    strengths = [{"part": "strength", "method": "SaRA", "strength": strength, **figures} for strength in (0.5, -0.5)]
    text = so_far.report([*tries, *strengths])
    assert text[0] == f"{len(tries)} tries, 0 cells, 0 other lines" and len(text) == 1 + len(tries) + 1
    assert text[-1].index("| SaRA | -0.5 |") < text[-1].index("| SaRA | 0.5 |")
