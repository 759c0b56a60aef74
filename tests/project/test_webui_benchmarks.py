"""The measurements at WebUIs: what is hashed, what is divided by what, and where a WebUI comes from."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import hosts, webui, webui_training
from benchmarks.webui_.checkpoint import write_config
from benchmarks.webui_.pipeline import rename
from benchmarks.webui_.server import A1111, KINDS, NEO, ONE_FILE, SDNEXT, Refused
from benchmarks.webui_training_ import passes
from benchmarks.webui_training_.asked import Asked
from benchmarks.webui_training_.round import CLAIMS, _different, _not_named, _said
from sara_core import SparseDelta, SparseEntry
from tests.support import tiny_diffusers


@pytest.fixture
def delta(tmp_path):
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([1.0]), (2, 2))
    SparseDelta({"b": entry, "a": entry}).save(tmp_path / "delta.safetensors")
    return [tmp_path / "delta.safetensors"]


def test_a_hash_is_of_every_bit_and_the_dtype_of_what_the_delta_names(delta):
    weights = {"b": torch.ones(2, 2), "a": torch.zeros(2, 2), "other": torch.zeros(1)}
    first = hosts.hash_of(weights, delta)
    assert first == hosts.hash_of({name: weights[name].t().t() for name in ("a", "b")}, delta)
    assert first != hosts.hash_of({**weights, "a": torch.tensor([[0.0, 0.0], [0.0, -0.0]])}, delta)
    assert first != hosts.hash_of({name: weight.half() for name, weight in weights.items()}, delta)
    assert first != hosts.hash_of({"a": weights["b"], "b": weights["a"]}, delta)


def test_a_host_with_another_hash_is_seen():
    found = {"one": {"float32": {"at 1": "x", "off": "y", hosts.BOTH: "p"}},
             "two": {"float32": {"at 1": "z", hosts.BOTH: "q"}}}  # fmt: skip
    report = {"hosts": {host: {"hashes": hashes} for host, hashes in found.items()},
              "orders": {"float32": {"once": "p", "each": "p"}},
              "skipped": ["three: THREE_DIR is not set"]}  # fmt: skip
    lines = hosts.text(report)
    assert lines[2].split() == ["float32,", "at", "1", "x", "z", "DIFFER"]
    assert lines[3].split() == ["float32,", "off", "y", "-", "one"]
    assert "float32, one: once" in lines and "float32, two: otherwise" in lines
    assert lines[-1] == "Skipped: three: THREE_DIR is not set."


def test_a_delta_is_compared_with_the_loras_of_its_round():
    seconds = {"delta": (1.0, 3.0), "attention": (2.0, 3.0), "all": (10.0, 10.0)}
    measured = [{"round": number, "network": network, "done": done, "seconds": seconds[network][number]}
                for number in (0, 1) for network in webui.TAGS for done in webui.DONE]  # fmt: skip
    found = {(one["done"], one["beside"]): one for one in webui.ratios(measured)}
    assert found["apply", "attention"]["spread"] == (0.75, 0.5, 1.0) and found["apply", "all"]["spread"].median == 0.2
    assert found["undo", "attention"]["limit"] == 0.5 and found["undo", "all"]["limit"] is None


def test_a_webui_is_the_one_that_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("NEO_DIR", raising=False)
    monkeypatch.setenv("A1111_DIR", str(tmp_path))
    assert NEO.checkout is None and A1111.checkout == tmp_path
    assert all(kind.by_dtype.keys() == set(hosts.DTYPES) for kind in ONE_FILE) and SDNEXT in KINDS
    (tmp_path / "configs").mkdir()
    part = "params: {unet_config: {params: {}}, cond_stage_config: {}}"
    (tmp_path / "configs" / "v1-inference.yaml").write_text(f"model: {{{part}}}")
    write_config(tmp_path, "sd15", tmp_path / "random.yaml")
    written = (tmp_path / "random.yaml").read_text()
    assert written.count("- 1\n") == 2 and (tmp_path / "clip" / "vocab.json").exists()


def test_without_a_checkout_the_speed_is_not_measured(monkeypatch, capsys):
    monkeypatch.delenv("A1111_DIR", raising=False)
    monkeypatch.setattr("sys.argv", ["webui"])
    assert webui.main() == 1 and "A1111_DIR" in capsys.readouterr().err


def test_without_a_checkout_nothing_is_trained(monkeypatch, capsys):
    monkeypatch.delenv("NEO_DIR", raising=False)
    monkeypatch.setattr("sys.argv", ["webui_training", "--only", "Forge Neo"])
    assert webui_training.main() == 1 and "NEO_DIR" in capsys.readouterr().err


def test_a_claim_that_did_not_hold_in_every_round_is_seen():
    whole = dict.fromkeys(CLAIMS)
    rounds = [whole, {**whole, "trained": "3 of 9 tensors are others"}]
    hosts_of = {"one": {"torch": "2.14.1", "rounds": rounds}, "two": {"torch": "2.14.1", "rounds": [whole]}}
    lines = webui_training.text({"hosts": hosts_of, "skipped": ["three: THREE_DIR is not set"]})
    row = next(line for line in lines if line.startswith(CLAIMS["trained"]))
    assert row.split()[-6:] == ["1", "OF", "2", "1", "of", "1"]
    assert sum("2 of 2" in line for line in lines) == len(CLAIMS) - 1
    assert lines[-2] == "Skipped: three: THREE_DIR is not set."
    assert lines[-1] == f"one, {CLAIMS['trained']}: 3 of 9 tensors are others"


def test_a_tensor_that_is_another_or_missing_is_named():
    assert _different({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == ""
    assert _different({"a": "1", "b": "2"}, {"a": "1", "b": "3"}) == "1 of 2 tensors are others (b: 2, 3)"
    assert _different({"a": "1"}, {}).startswith("1 of 1") and _different({}, {"a": "1"}).startswith("1 of 0")
    assert _said(False, "", "one", None, "two") == "one, two"


def test_a_delta_that_the_status_does_not_name_is_seen():
    assert _not_named({"delta": "part"}, "part") == ""
    assert _not_named({"delta": None}, "part") == "the status names None as its delta"


class _Drawn:
    """A WebUI whose UNet is as the prompts say, but in the pass that is broken."""

    webui = SimpleNamespace(kind=SDNEXT)

    def __init__(self, broken=""):
        self.broken = broken

    def passes(self, prompt, way="txt2img", **others):
        prompts = [prompt] * 2 + [others.get(SDNEXT.second_prompt)] * ("enable_hr" in others)
        is_broken = bool(self.broken) and self.broken in (*others, way)
        count = others.get("n_iter", 1) * others.get("batch_size", 1)
        return prompts[:1] if is_broken and "enable_hr" in others else [*prompts, *["none"] * is_broken], ["x"] * count

    def draw(self, prompt):
        assert prompt == "a cat"


def test_another_unet_in_one_of_the_passes_is_seen():
    assert dict(passes.claims(_Drawn())) == dict.fromkeys(("hires", "batch", "img2img"), "")
    for broken, claim in (("enable_hr", "hires"), ("n_iter", "batch"), ("img2img", "img2img")):
        found = dict(passes.claims(_Drawn(broken)))
        assert [name for name, wrong in found.items() if wrong] == [claim], broken


def test_a_pipelines_weights_are_read_by_the_names_of_deltas(tmp_path):
    unet, file = tiny_diffusers.unet(), tmp_path / "unet.safetensors"
    save_file({f"diffusion_model.{name}": weight for name, weight in unet.state_dict().items()}, file)
    rename(file)
    weights = load_file(file)
    assert torch.equal(weights["diffusion_model.input_blocks.0.0.weight"], unet.conv_in.weight)
    assert len(weights) == len(unet.state_dict())


class _Told:
    """A WebUI that answers a training with what it is given, one status after the other."""

    def __init__(self, *statuses, refused=None):
        self.statuses, self.refused = iter(statuses), refused

    def post(self, route, given):
        if self.refused:
            raise Refused(self.refused)

    def get(self, route):
        return next(self.statuses)


def test_what_a_host_makes_without_a_value_is_not_compared(tmp_path):
    model = {"clip.clip_l.transformer.text_projection.weight": "1", "clip.clip_l.transformer.text_model.x": "2"}
    asked = Asked(_Told({"model": model}), tmp_path)
    assert asked.digests() == {"clip.clip_l.transformer.text_model.x": "2"}


def test_a_training_is_followed_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.webui_training_.asked.BETWEEN_LOOKS", 0)
    begun, going, over = ({"phase": phase, "step": step} for phase, step in
                          (("waiting", 0), ("training", 3), ("stopped", 3)))  # fmt: skip
    asked = Asked(_Told(begun, going, going, over), tmp_path)
    assert asked.until_step(3) is going and asked.until_over() is over
    assert Asked(_Told(over), tmp_path).until_step(9) is over, "one that is over gets no further"
    assert Asked(_Told(refused="Choose a folder."), tmp_path).refused({}) == "Choose a folder."
    assert Asked(_Told(begun, over), tmp_path).refused({}) is None
