"""What a picture is trained under: its own caption, one for all, the trigger word before it."""

import pytest

from sara_core.data.captioning import Captioning

CAPTIONS = {
    "its own": (Captioning(), "a cat", "a cat"),
    "none": (Captioning(), None, None),
    "an empty file": (Captioning(), "", ""),
    "none, and that is as it may be": (Captioning(takes_any=True), None, ""),
    "its own before the one for all": (Captioning(for_all="a dog"), "a cat", "a cat"),
    "the one for all": (Captioning(for_all=" a dog\n"), None, "a dog"),
    "the one for all, of an empty file": (Captioning(for_all="a dog"), "", "a dog"),
    "the trigger": (Captioning(" ohwx "), "a cat", "ohwx, a cat"),
    "the trigger alone": (Captioning("ohwx"), None, "ohwx"),
    "the trigger before the one for all": (Captioning("ohwx", "a dog"), None, "ohwx, a dog"),
    "the trigger, which is there": (Captioning("ohwx"), "photo of OHWX dog", "photo of OHWX dog"),
    "the trigger, which is there at the end": (Captioning("ohwx man"), "a photo of ohwx man", "a photo of ohwx man"),
    "the trigger, which is in a word": (Captioning("cat"), "a catalogue", "cat, a catalogue"),
    "a trigger of signs": (Captioning("a+b (c)"), "x a+b (c) y", "x a+b (c) y"),
    "white space": (Captioning(" ", "\n"), None, None),
}


@pytest.mark.parametrize("what", CAPTIONS)
def test_the_caption_of_a_picture(what):
    captioning, own, caption = CAPTIONS[what]
    assert captioning.caption(own) == caption


PLAIN = {
    "ohwx, a cat": "a cat", "OHWX": "", "a photo of ohwx cat": "a photo of cat", "a cat, ohwx": "a cat",
    "ohwxes, ohwx,  a cat": "ohwxes, a cat", "a cat": "a cat",
}  # fmt: skip


@pytest.mark.parametrize("caption", PLAIN)
def test_the_trigger_word_can_be_taken_out(caption):
    assert Captioning("ohwx").without_trigger(caption) == PLAIN[caption]
    assert Captioning().without_trigger(caption) == ""
    assert Captioning("a (cat").without_trigger("a (cat, on a mat") == "on a mat"
