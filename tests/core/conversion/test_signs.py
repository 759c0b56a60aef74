"""What the names of a file's tensors tell of it, sign by sign, and what people then get to read."""

import pytest

from sara_core.conversion.foreign_file import opened_foreign
from sara_core.conversion.registry import READERS, advice, format_names, recognised
from sara_core.conversion.remedies import LIBRARY, MIXED, MODEL, UNKNOWN
from tests.support.toy_adapters import saved, weights

SIGNS = [sign for reader in READERS.values() for sign in reader.signs]
EXAMPLES = {
    "a.lora_down.weight": "a LoRA",
    "unet.a.to_q.lora.up.weight": "a LoRA",
    "a.hada_w1_a": "a LoHa or LoKr adapter (LyCORIS)",
    "a.lokr_w2": "a LoHa or LoKr adapter (LyCORIS)",
    "a.oft_blocks": "an OFT or BOFT adapter",
    "a.on_input": "an IA³ adapter (LyCORIS)",
    "a.diff_b": "a dense weight difference",
}


@pytest.mark.parametrize("sign", SIGNS, ids=lambda sign: sign.what)
def test_every_sign_has_words_a_remedy_and_something_to_find(sign):
    assert sign.remedy in LIBRARY and sign.remedy not in (MIXED, UNKNOWN) and sign.what not in LIBRARY
    for parts in (sign.endings, sign.beginnings, sign.within):
        assert isinstance(parts, (tuple, frozenset)) and all(isinstance(part, str) and part for part in parts)
    assert any((sign.endings, sign.beginnings, sign.within))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_is_called_what_it_is(name):
    assert advice([name, "b.alpha"], LIBRARY).startswith(f"It looks like {EXAMPLES[name]}. Make a delta of it with")


def test_a_file_of_weights_is_read_as_a_model_and_called_one(tmp_path):
    with opened_foreign(saved(tmp_path / "x.safetensors", weights())) as file:
        assert recognised(file) is READERS["model"]
        assert advice(file.names, LIBRARY) == f"It looks like the weights of a model. {LIBRARY[MODEL]}"


def test_what_nothing_is_known_of_and_a_delta_with_more_in_it_are_told_apart():
    assert advice(["a.b.c"], LIBRARY) == LIBRARY[UNKNOWN]
    assert advice(["a.sara1_head", "a.lora_down.weight"], LIBRARY) == LIBRARY[MIXED]


def test_formats_are_listed_once_each():
    names = format_names()
    assert len(names) == len(set(names)) and {"LoRA", "LyCORIS", ".diff", "SHiRA"} <= set(names)
