"""What strangers write into files is text wherever it is shown: no terminal, page or node obeys it."""

import json
import re
import unicodedata

import pytest
import torch
from safetensors.torch import save_file

from sara_core import SparseDelta, SparseEntry
from sara_core.__main__ import main
from sara_core.delta.describe import describe
from sara_core.errors import DeltaError, TrainingError
from sara_core.foreign_text import escaped_json, plain, plain_lines, visible
from sara_core.models.identity import OTHER, Verdict
from sara_core.names.blocks import natural_order
from sara_core.wording import listed

HOSTILE = (
    "<img src=x onerror=alert(1)>[[safe|https://x.example]] [label](https://x.example) ![p](https://x.example/p.png)"
    " &lt;b&gt; __LNK0__ `code` \x1b]8;;https://x.example\x07link\x1b]8;;\x07 \x9b31m"
    " \x07\x08\x7f\r\n\u2028\u202e\u2066\ufeff"
)


def without_shape(text):
    """Its characters that move, hide or colour others."""
    return [letter for letter in text if letter != "\n" and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl")]


def is_obeyed(text):
    """What of a text in several lines some place would take for a command."""
    return without_shape(text) + re.findall(r"<[A-Za-z/!?]|\[\[|\]\]|\]\(|&#?\w|__LNK\d|`", text)


def entry(count=2):
    return SparseEntry(torch.arange(count, dtype=torch.int32), torch.ones(count), (2, 4))


@pytest.fixture
def file(tmp_path):
    """A delta of whose every word somebody would make a command."""
    keys = ["title", "author", "description", "trigger_phrase", "license", "tags", HOSTILE]
    metadata = {f"modelspec.{key}": HOSTILE for key in keys}
    metadata |= {"sara.family": HOSTILE, "sara.base_name": HOSTILE, "sara.base": HOSTILE, HOSTILE: HOSTILE}
    metadata |= {"sara.training": json.dumps({HOSTILE: HOSTILE, "include": [HOSTILE]}), "sara.merge": HOSTILE}
    path = tmp_path / "[[x|y]]<b>\x1b[31m\u202e.safetensors"
    SparseDelta({f"diffusion_model.{HOSTILE}.weight": entry()}, metadata).save(path)
    return path


def test_only_what_would_be_obeyed_is_changed():
    harmless = "a < b, x[1], [2, 3](no), R&D & more, attn.*, a_b, 5 > 3, naïve 漢字 عربي می\u200cخواهم 👩\u200d🚀 https://x.example"
    assert plain(harmless.replace("](", "] (")) == harmless.replace("](", "] (").replace("R&D", "R＆D")
    assert plain("a\nb\tc") == "a b c" and plain_lines("a\nb\tc") == "a\nb c"
    assert not is_obeyed(plain(HOSTILE)) and not is_obeyed(plain_lines(HOSTILE))
    assert plain(plain(HOSTILE)) == plain(HOSTILE)


@pytest.mark.parametrize("hostile", [
    "<\x00img src=x>", "[\x1b[a|b]]", "[a]\u202e(b)", "[[[[a|b]]]]", "\ud800", "[x]: https://x.example", "<!--", "</b>",
])  # fmt: skip
def test_nothing_becomes_a_command_by_what_is_taken_out(hostile):
    shown = plain(hostile)
    assert not is_obeyed(shown) and not re.match(r"\s*\[[^\]]*\]:", shown)
    shown.encode()


def test_long_text_loses_its_middle():
    assert plain("a" * 5000 + "remedy", 100) == "a" * 66 + "…" + "a" * 27 + "remedy"
    assert len(plain("[[" * 5000, 99)) <= 99


def test_errors_are_plain_whatever_is_named_in_them():
    message = str(DeltaError(f"'{HOSTILE}' has shape [2, 3]: use another."))
    assert not is_obeyed(message) and "\n" not in message and message.endswith("has shape [2, 3]: use another.")
    assert len(str(TrainingError("x" * 10**6))) <= 2000
    assert not is_obeyed(listed([HOSTILE, HOSTILE]))
    assert not is_obeyed(Verdict(OTHER, base_name=HOSTILE).text())


def test_json_says_the_same_in_characters_that_have_a_shape():
    text = json.dumps({"a": HOSTILE + "\U000e0041"}, ensure_ascii=False, indent=2)
    escaped = escaped_json(text)
    assert json.loads(escaped) == json.loads(text)
    assert visible(escaped) == escaped


@pytest.mark.parametrize("command", [
    ["inspect", "{file}"], ["inspect", "{file}", "--json"], ["inspect", "{file}", "--base", "{file}"],
    ["report", "{file}"], ["merge", "{out}", "{file}=0.5", "{file}"], ["merge", "{out}", "{file}", "{other}"],
    ["merge", "{out}", "{file}", "--block", "nowhere = 1"], ["convert", "{file}", "{out}"],
    ["convert", "{file}", "{out}", "--to", "lora"], ["convert", "{foreign}", "{out}"],
    ["bake", "{file}", "{out}", "{file}"], ["bake", "{foreign}", "{out}", "{file}"],
    ["extract", "{foreign}", "{file}", "{out}"], ["extract", "{foreign}", "{tuned}", "{out}"],
])  # fmt: skip
def test_no_command_shows_anything_raw(file, tmp_path, capsys, command):
    other, foreign = tmp_path / "other.safetensors", tmp_path / "[a](b)\x1b.safetensors"
    SparseDelta({f"{HOSTILE}.weight": entry()._replace(shape=(4, 2))}, {"sara.family": "SDXL"}).save(other)
    tensors = {f"{HOSTILE}{number}.weight": torch.ones(2, 4) for number in range(5)}
    save_file(tensors, foreign, {HOSTILE: HOSTILE})
    tuned = tmp_path / "tuned.safetensors"
    beside = {f"{HOSTILE}.mean": torch.ones(2)}  # which the report names: only one of the models has it
    save_file({name: tensor * 2 for name, tensor in tensors.items()} | beside, tuned)
    places = {
        "file": file, "other": other, "foreign": foreign, "tuned": tuned, "out": tmp_path / "out.safetensors",
    }  # fmt: skip
    main([part.format(**places) for part in command])
    shown = "".join(capsys.readouterr())
    assert len(shown) > 50
    assert not without_shape(shown)
    if command[0] != "report" and "--json" not in command:  # the one in a fence, the other for programs
        assert not is_obeyed(shown)


def test_a_file_that_says_too_much_is_shown_in_part():
    metadata = {f"key {number}": "v" * 10_000 for number in range(2000)}
    entries = {f"block{number}.0.weight": entry() for number in range(2000)}
    text = describe(SparseDelta(entries, metadata)).text()
    assert text.count("and 1,500 more") == 2 and len(text) < 700_000


@pytest.mark.parametrize("name", ["a.²", "b.٣.c", "c." + "9" * 5000, "d.①"])
def test_numbers_in_names_are_read_as_far_as_they_are_some(name):
    assert sorted([name, "a.1"], key=natural_order)
    describe(SparseDelta({f"{name}.weight": entry(), "e.1.weight": entry()})).text()
