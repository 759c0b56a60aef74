"""Sentences that keep what they are made of, for those who say them in another language."""

import copy

import torch

from sara_core.errors import TrainingError
from sara_core.wording import Sentence, amount, both


def test_a_sentence_is_its_english_text_and_knows_its_parts():
    said = Sentence("{count} of {all} in '{name}'", count=3, all=12, name="{count} pictures")
    assert said == "3 of 12 in '{count} pictures'" and isinstance(said, str)
    assert said.key == "{count} of {all} in '{name}'" and said.values["name"] == "{count} pictures"
    copied = copy.deepcopy(said)
    assert (copied, copied.key, copied.values) == (said, said.key, said.values)


def test_one_and_many_are_two_keys():
    assert [str(amount(count, "1 picture", "{count} pictures")) for count in (0, 1, 1234)] == [
        "0 pictures", "1 picture", "1,234 pictures",
    ]  # fmt: skip


def test_an_error_says_the_same_in_english_and_in_parts():
    inner = Sentence("'{name}' is damaged.", name="a\x1b[31m<b>.png")
    error = TrainingError(both(inner, Sentence("Nothing is kept.")))
    assert error.said == str(error) == "'a\ufffd[31m‹b>.png' is damaged. Nothing is kept."
    first = error.said.values["first"]
    assert (first.key, first.values) == ("'{name}' is damaged.", {"name": "a\ufffd[31m‹b>.png"})
    assert str(TrainingError("as it\x07 is")) == TrainingError("as it\x07 is").said == "as it\ufffd is"


def test_a_function_that_may_raise_one_is_compiled():
    """torch.compile traces functions of torchao's that raise ours."""

    @torch.compile(backend="eager", fullgraph=True)
    def doubled(x, is_wrong):
        if is_wrong:
            raise TrainingError("It is wrong.")
        return 2 * x

    assert doubled(torch.ones(2), False).tolist() == [2, 2]
