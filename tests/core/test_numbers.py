"""Numbers that come in are finite, of their kind, in their range, and the same in float32 as far as it has them."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from sara_core.errors import DeltaError, TrainingError
from sara_core.numbers import checked, described, read, read_list

NO_NUMBERS = [
    math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-46, True, np.bool_(True), "1", "0,5", None, [1.0], (1,), {}, 1j,
    Decimal("1"), torch.ones(2), torch.tensor(math.nan), np.float64("inf"), np.ones(1), 10**400, Fraction(1, 10**300),
]  # fmt: skip
NUMBERS = [0, 1, -1, 0.0, -0.0, 0.5, 1e-40, 3e38, np.float32(0.5), np.int64(3), torch.tensor(2.5), Fraction(1, 2)]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_that_float32_has(value):
    with pytest.raises(DeltaError, match="^the strength is .*: it takes a finite number that float32 can hold.$"):
        checked(value, "the strength")


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_what_is_one(value):
    found = checked(value, "x")
    assert found == value and type(found) in (int, float)


@pytest.mark.parametrize("value", [1.5, "5", True, math.nan, math.inf, 0, 11, None, [5]], ids=repr)
def test_what_is_no_whole_number_of_a_range(value):
    with pytest.raises(TrainingError, match="^steps is .*: it takes a whole number from 1 to 10.$"):
        checked(value, "steps", 1, 10, whole=True, error=TrainingError)


@pytest.mark.parametrize("value", [5, 5.0, np.int8(5), np.float32(5), torch.tensor(5)], ids=repr)
def test_what_is_a_whole_number(value):
    found = checked(value, "steps", 1, 10, whole=True)
    assert found == 5 and type(found) is int


def test_the_ends_of_a_range():
    assert checked(0, "x", 0, 1) == 0 and checked(1.0, "x", above=0, most=1) == 1.0
    for limits in ({"least": 0.1}, {"above": 0.0}, {"most": -1}):
        with pytest.raises(DeltaError):
            checked(0.0, "x", **limits)


@pytest.mark.parametrize("limits, words", [
    ({}, "a finite number that float32 can hold"),
    ({"least": 0, "most": 1.0}, "a number from 0 to 1"), ({"above": 0}, "a number above 0"),
    ({"above": 0, "most": 1}, "a number above 0 and at most 1"),
    ({"least": 1, "whole": True}, "a whole number not below 1"),
    ({"most": 2**63 - 1, "whole": True}, f"a whole number at most {2**63 - 1}"),
])  # fmt: skip
def test_a_range_in_words(limits, words):
    assert described(**limits) == words


NO_TEXTS = ["nan", "NaN", "inf", "-Infinity", "1e400", "-1e309", "1e-400", "0x10", "1_000", "０.５", "٣", "", " ",
            "1 2", "1.2.3", "--1", "1e", "e5", "1/2", "50%", "True", "None", "1f", "1.0j", "9" * 5000]  # fmt: skip


@pytest.mark.parametrize("text", NO_TEXTS, ids=lambda text: repr(text[:20]))
def test_a_text_that_is_no_number(text):
    with pytest.raises(DeltaError, match="^the strength is .*: (it takes a finite number|write 0)") as raised:
        read(text, "the strength")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("text, number", [
    ("0.5", 0.5), (" -1 ", -1.0), ("+.5", 0.5), ("5.", 5.0), ("1e-3", 1e-3), ("2E+2", 200.0), ("0", 0.0), ("-0e9", 0.0),
])
def test_a_text_that_is_one(text, number):
    assert read(text, "x") == number


@pytest.mark.parametrize("text", ["1.5", "5.0", "1e3", "5,5", "x"])
def test_a_text_that_is_no_whole_number(text):
    with pytest.raises(DeltaError, match="it takes a whole number"):
        read(text, "steps", whole=True)


def test_a_decimal_comma_is_named():
    words = "x is '0,5': it takes a number from 0 to 1. Write 0.5, with a point."
    with pytest.raises(DeltaError, match=re.escape(words)):
        read("0,5", "x", 0, 1)


@pytest.mark.parametrize("text", ["0,5", "1,0", "-0,5", "0,6, 1", "1, 0,5", "10,25"])
def test_a_comma_in_a_list_that_may_be_a_decimal_one_is_refused(text):
    with pytest.raises(DeltaError, match=r"the weights: '\d+,\d+' may be \d+\.\d+ or the two numbers"):
        read_list(text, "the weights")


@pytest.mark.parametrize("text, numbers", [
    ("0.6, -0.4", [0.6, -0.4]), ("0.6,-0.4", [0.6, -0.4]), ("1, 0", [1, 0]), ("1", [1]), ("0.5,1", [0.5, 1]),
    ("1,0.5", [1, 0.5]), ("1e-3,2", [1e-3, 2]),
])
def test_a_list_of_numbers(text, numbers):
    assert read_list(text, "x") == numbers


@pytest.mark.parametrize("text", ["", "1,", ",1", "1;2", "nan, 1", "1, inf"])
def test_a_list_with_something_else_in_it(text):
    with pytest.raises(DeltaError, match="x is"):
        read_list(text, "x")
