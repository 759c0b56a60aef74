"""The paper's one figure for style and text together (arXiv 2409.06633), of the methods of one pool:

    VLHI = (max FID − FID) / (max FID − min FID) + (text − min text) / (max text − min text)

0 is the worst in both, 2 the best in both. The extremes are those of the pool: it says how methods stand to each other
in one table, and nothing across tables; with other methods in the pool it is another number.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from statistics import fmean


def of_pool(lines: Sequence[dict], pool: Collection[str]) -> dict[str, float]:
    """The mean over styles, in each of which a method stands for the means of its seeds; of methods that have runs in
    every style, if there are two or more.

    lines: with `method`, `style`, `fid` and `text`; pool: the methods that are compared
    """
    runs: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["method"] in pool:
            runs[line["method"]][line["style"]].append(line)
    styles = {style for own in runs.values() for style in own}
    whole = {method: own for method, own in runs.items() if own.keys() == styles}
    if len(whole) < 2:
        return {}
    found: dict[str, list[float]] = defaultdict(list)
    for style in styles:
        fid, text = (
            {method: fmean(line[figure] for line in own[style]) for method, own in whole.items()}
            for figure in ("fid", "text")
        )
        for method in whole:
            found[method].append(1 - _place(fid[method], fid.values()) + _place(text[method], text.values()))
    return {method: fmean(own) for method, own in found.items()}


def _place(value: float, among: Collection[float]) -> float:
    """0 … 1 between the lowest and the highest."""
    low, high = min(among), max(among)
    return (value - low) / (high - low) if high > low else 0.0
