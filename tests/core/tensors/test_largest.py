"""The n largest of a stream, exactly, against sorting it."""

import pytest
import torch

from sara_core.tensors.largest import MagnitudeHistogram, largest_cut


@pytest.mark.parametrize("n", [1, 2, 500, 999, 1000, 2000])
@pytest.mark.parametrize("kind", ["random", "few values", "all equal", "tiny and huge"])
def test_the_largest_are_exact_and_the_first_of_equals(kind, n):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(1000, generator=generator)
    if kind == "few values":
        values = (values * 2).round()
    elif kind == "all equal":
        values = torch.full((1000,), -0.3)
    elif kind == "tiny and huge":
        values = values * 10.0 ** torch.randint(-44, 38, (1000,), generator=generator)
    parts = values.split(137)
    histogram = MagnitudeHistogram()
    for part in parts:
        histogram.add(part)
    cut = largest_cut(histogram, parts, n)
    chosen = torch.cat([cut.mask(part) for part in parts])
    order = values.abs().sort(descending=True, stable=True).indices[:n]
    expected = torch.zeros(1000, dtype=torch.bool)
    expected[order] = True
    assert torch.equal(chosen, expected)


def test_the_histogram_counts_and_squares_below_its_edges():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(2)) * 0.1
    histogram = MagnitudeHistogram()
    histogram.add(values)
    for theta in (0.001, 0.05, 0.2):
        place = int(torch.searchsorted(histogram.edges[: 255 << 8], theta))
        edge = float(histogram.edges[place])
        below = values[values.abs() < edge]
        assert int(histogram.counts[:place].sum()) == len(below)
        assert float(histogram.squares[:place].sum()) == pytest.approx(float(below.double().square().sum()))
    assert histogram.total == 5000
