"""What the documentation says of other programs is what their readers were found to do."""

import json

import torch

from benchmarks.readers import TRIED, as_wide_as_real
from benchmarks.readers_.cases import FAMILIES_TRIED, NEAR, WITH_TEXT, judged
from benchmarks.readers_.environments import ENVIRONMENTS
from benchmarks.readers_.tables import COLUMNS, cell, markdown
from devtools.comfyui.install import DEFAULT_VERSION, ROOT
from sara_core.conversion.dense.programs import PROGRAMS

REPORT = json.loads((ROOT / "benchmarks" / "results" / "readers.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8")


def test_the_table_is_made_of_the_results():
    assert "\n".join(markdown(REPORT)) in PAGE
    assert REPORT["date"] in PAGE
    for name, version in REPORT["versions"].items():
        assert name in ("Python", "torch") or f"{name} {version}".lower() in " ".join(PAGE.split()).lower()


def test_everything_was_tried_with_what_is_pinned():
    tried = [(result["family"], result["reader"], result["format"]) for result in REPORT["results"]]
    cases = (*FAMILIES_TRIED, *WITH_TEXT)
    assert tried == [(case, *how) for case in cases for how in TRIED] and set(COLUMNS) == set(TRIED)
    assert REPORT["versions"]["ComfyUI"] == DEFAULT_VERSION
    for environment in ENVIRONMENTS.values():
        name, version = environment.packages[0].split("==")
        assert REPORT["versions"][name] == version
    requirements = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    for name in ("diffusers", "peft"):
        assert f"{name}=={REPORT['versions'][name]}" in requirements


def test_every_lora_arrives_where_it_is_promised_and_is_refused_elsewhere():
    for result in REPORT["results"]:
        if (program := PROGRAMS.get(result["reader"])) is None or result["format"] != "lora":
            continue
        family = WITH_TEXT.get(result["family"], result["family"])
        is_promised = program.others is not None or family in program.layouts
        assert result["outcome"] == ("arrived" if is_promised else "refused"), result
        if is_promised:
            assert result["layers"] and result["error"] <= NEAR and not result["wrong"]
            assert bool(result["missing"]) == bool(result["left_out"])


def test_what_was_not_as_promised_would_be_seen():
    one, two = torch.ones(3), torch.full((3,), 2.0)
    right = {"layers": 1, "error": 0.0, "missing": 0, "wrong": []}
    assert judged({"a": one}, {"a": one}, "") == right
    assert judged({"a": one}, {"a": two}, "")["wrong"] == ["a: 1.00"]
    assert judged({"a": one}, {"a": one, "b": one}, "")["wrong"] == ["b"]
    assert judged({"a": one, "b": one}, {"a": one}, "")["wrong"] == ["1 missing, 0 said"]
    said = "Left out, because of that: 1 with 50% of the squared change (b)."
    assert judged({"a": one, "b": one}, {"a": one}, said) == {**right, "missing": 1}


def test_a_cell_says_what_became_of_a_delta():
    arrived = {"outcome": "arrived", "format": "lora", "missing": 0, "left_out": []}
    assert cell(arrived) == "everything"
    assert cell({**arrived, "missing": 3, "left_out": ["norms"]}) == "layers"
    assert cell({**arrived, "missing": 3, "left_out": ["norms", "ends"]}) == "blocks"
    assert cell({"outcome": "refused"}) == "refused"


def test_factors_are_made_as_wide_as_a_real_models():
    shapes = {"a.lora_A.weight": (2, 8), "a.lora_B.weight": (4, 2), "b.lora_down.weight": (1, 4), "b.alpha": ()}
    wide = as_wide_as_real({name: torch.ones(shape) for name, shape in shapes.items()}, 3)
    assert {name: tuple(tensor.shape) for name, tensor in wide.items()} == {
        "a.lora_A.weight": (2, 24), "a.lora_B.weight": (12, 2), "b.lora_down.weight": (1, 12), "b.alpha": (),
    }  # fmt: skip
