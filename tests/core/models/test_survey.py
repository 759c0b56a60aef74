"""What a survey of a model's weights says to people, line by line."""

import pytest
import torch

from sara_core.models import survey as surveys
from sara_core.models.survey import THETAS, WeightSurvey

# Of 1,000 elements 300 are 0.001, the others 1.
WEIGHTS = {
    "a.weight": torch.cat([torch.full((300,), 0.001), torch.ones(100)]).view(20, 20), "b.weight": -torch.ones(600),
}  # fmt: skip
LEGEND = [
    "file: with fp32 values. training: beside the model, with AdamW. zeroed: the norm of these",
    "elements relative to that of all: what the weights change by if all of these are set to zero.",
]


def test_the_thetas_are_numbers_that_people_would_type():
    assert len(THETAS) == 61 and list(THETAS) == sorted(THETAS)
    assert [f"{theta:g}" for theta in THETAS[:11]] == [
        "1e-06", "1.2e-06", "1.5e-06", "2e-06", "2.5e-06", "3e-06", "4e-06", "5e-06", "6e-06", "8e-06", "1e-05"
    ]  # fmt: skip
    assert THETAS[-2:] == (0.8, 1.0)


def test_the_text_has_the_round_thetas_and_a_legend():
    first, title, *rows = WeightSurvey(WEIGHTS).text().splitlines()
    assert first == "1,000 elements in 2 Linear and Conv weights. All with |w| < θ:"
    assert title.split() == ["θ", "elements", "density", "file", "training", "zeroed"]
    assert rows[-2:] == LEGEND
    # A weight of exactly θ is not below it, and nothing else lies between.
    assert [row.split()[0] for row in rows[:-2]] == ["0.002", "0.005", "0.008", "0.01", "0.02", "0.05", "0.08", "0.1",
                                                     "0.2", "0.5", "0.8", "1"]  # fmt: skip
    file_bytes = round(300 * (4 + 1.02 * 2.937635 / 8)) + 2 * 500
    zeroed = (300 * 0.001**2 / (700 + 300 * 0.001**2)) ** 0.5
    assert rows[0].split() == ["0.002", "300", "30.000%", f"{file_bytes / 1e6:.1f}", "MB", "0.0", "MB", f"{zeroed:.3%}"]


def test_what_was_predicted_stands_beside_its_theta_and_is_explained():
    lines = WeightSurvey(WEIGHTS).text({0.005: 0.125, 0.003: 0.5}).splitlines()
    assert lines[1].endswith("zeroed   prediction")
    assert [line for line in lines if "12.500%" in line] == [line for line in lines if line.split()[0] == "0.005"]
    assert len(lines[3].split()) == len(lines[2].split()) + 1 and "50.000%" not in "\n".join(lines)
    assert lines[-3:] == [
        *LEGEND, "prediction: what the model's output then changes by, on the latent and prompt connected."
    ]


@pytest.mark.parametrize("size, shown", [(1e6, "    1.0 MB"), (999.94e6, "  999.9 MB"), (1e9, "   1.00 GB")])
def test_sizes(size, shown):
    assert surveys._megabytes(int(size)) == shown


def test_a_model_of_zeros_has_nothing_to_lose():
    survey = WeightSurvey({"a.weight": torch.zeros(4, 4)})
    assert survey.rows() == []  # every θ selects everything
    assert WeightSurvey({"a": torch.tensor([0.0, float("inf")])}).rows()[0].elements == 1


def test_chunks_count_as_the_whole(monkeypatch):
    whole = WeightSurvey(WEIGHTS).rows()
    monkeypatch.setattr(surveys, "_CHUNK", 7)
    for one, other in zip(WeightSurvey(WEIGHTS).rows(), whole, strict=True):
        assert (one.theta, one.elements) == (other.theta, other.elements)
        assert one.zeroed == pytest.approx(other.zeroed)
