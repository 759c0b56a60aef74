"""Lines of measured cells → tables: means per method, and paired differences to a reference with their intervals.

Two trainings are a pair if they have the same budget, style and seed, and so the same pictures, noise and batches. The
p value is that of the sign-flip test, which needs no distribution; the interval of the mean difference is Student's.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import vlhi
from .protocol import PRIMARY, REFERENCE

FIGURES = ("kid", "text", "drift", "fid", "styled", "right", "leaked")
_DIGITS = {"rate": 5, "off": 1, "off alone": 1, "kid": 1, "fid": 2, "trained": 0, "training seconds": 0}


class Difference(NamedTuple):
    """Mean of a figure's paired differences to the reference, its 95 % interval, the sign-flip test's p value (two
    sides), and how many pairs they are of."""

    mean: float
    low: float
    high: float
    p: float
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired(lines: Sequence[dict], method: str, figure: str, reference: str = REFERENCE) -> Difference | None:
    """The difference of a figure between a method and the reference; None with fewer than two pairs."""
    from scipy import stats

    ours, theirs = _by_pair(lines, method), _by_pair(lines, reference)
    pairs = sorted(ours.keys() & theirs.keys())
    if len(pairs) < 2:
        return None
    differences = np.array([ours[pair][figure] - theirs[pair][figure] for pair in pairs])
    if not differences.std():
        return Difference(differences[0], differences[0], differences[0], 0.0 if differences[0] else 1.0, len(pairs))
    interval = stats.ttest_1samp(differences, 0).confidence_interval()
    flipped = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=10_000, rng=0)
    return Difference(differences.mean(), interval.low, interval.high, flipped.pvalue, len(pairs))


def _by_pair(lines: Sequence[dict], method: str) -> dict[tuple, dict]:
    return {(line["share"], line["style"], line["seed"]): line for line in lines if line["method"] == method}


def overview(lines: Sequence[dict]) -> str:
    """A Markdown table: a row for every method, the mean of every figure, and what it cost."""
    columns = [*FIGURES, "trained", "training seconds"]
    methods = defaultdict(list)
    for line in lines:
        methods[line["method"]].append(line)
    rows = [["method", *columns, "runs"]]
    for method, own in methods.items():
        means = [_number(name, float(np.mean([line[name] for line in own]))) for name in columns]
        rows.append([method, *means, str(len(own))])
    return _markdown(rows)


def differences(lines: Sequence[dict], reference: str = REFERENCE) -> str:
    """A Markdown table of the primary figures: every method against the reference, better in bold where it is clear."""
    rows = [["method", *(f"{figure} ({better} is better)" for figure, better in PRIMARY.items()), "pairs"]]
    for method in dict.fromkeys(line["method"] for line in lines):
        found = {figure: paired(lines, method, figure, reference) for figure in PRIMARY}
        if method != reference and None not in found.values():
            cells = [_difference(figure, difference) for figure, difference in found.items()]
            rows.append([f"{method} − {reference}", *cells, str(found["kid"].pairs)])
    return _markdown(rows)


def of_methods(lines: Sequence[dict], references: Sequence[str] = (REFERENCE,)) -> str:
    """For each budget the means of every method, and differences to each reference."""
    budgets = defaultdict(list)
    for line in lines:
        budgets[line["share"]].append(line)
    return "\n".join(
        "\n".join([f"\n{share:.2%} of the weights\n", overview(own), *(differences(own, one) for one in references),
                   _vlhi(own)])
        for share, own in sorted(budgets.items())
    )


def _vlhi(lines: Sequence[dict]) -> str:
    """VLHI among the paper's methods, with full fine-tuning and without, of pools that are whole."""
    from .plan import PAPERS

    rows = [["VLHI", *PAPERS]]
    for called, left_out in (("the paper's methods", set()), ("without full fine-tuning", {"full"})):
        pool = [name for name in PAPERS if name not in left_out]
        found = vlhi.of_pool(lines, pool)
        if len(found) == len(pool):
            rows.append([called, *(f"{found[name]:.2f}" if name in found else "" for name in PAPERS)])
    return _markdown(rows) if len(rows) > 1 else ""


def of_part(part: str, lines: Sequence[dict]) -> str:
    """The table of a part."""
    tables = {
        "premise": _premise, "ablation": _ablation, "strength": _strength, "merging": _merging, "subject": _subject,
        "candidates": _candidates, "whole-runs": _whole_runs, "motion": _motion, "better": _better,
    }  # fmt: skip
    return tables[part](lines)


def _premise(lines: Sequence[dict]) -> str:
    rows = [["at 0", "of", "share", "θ", "right", "text", "drift"]]
    for line in sorted(lines, key=lambda line: (line["layers"], line["share"])):
        figures = (_number(name, line[name]) for name in ("right", "text", "drift"))
        rows.append([line["chosen"], line["layers"], f"{line['share']:.2%}", f"{line['theta']:.2g}", *figures])
    return _markdown(rows)


def _ablation(lines: Sequence[dict]) -> str:
    """Lines of parts.ABLATIONS: each named, and its paired differences to training without any of them."""
    from .parts import ABLATIONS

    names = {_options_text(tuple(options.items())): name for name, options in ABLATIONS.items()}
    named = [{**line, "method": names[_options_text(line["options"])]} for line in lines]
    return f"\n{overview(named)}\n{differences(named, reference='neither')}"


def _better(lines: Sequence[dict]) -> str:
    """Lines of better.BETTER, with differences to LoRA and to SaRA as it is shipped."""
    return of_methods(named_methods(lines), (REFERENCE, "SaRA"))


def named_methods(lines: Sequence[dict]) -> list[dict]:
    """Lines of cells, each with the name that its method has with its options; those with options that have no name, as
    of the ablation, are left out."""
    from .better import BETTER

    names = {(method, _options_text(tuple(options.items()))): name for name, (method, options) in BETTER.items()}
    found = ((line, (line["method"], _options_text(line["options"]))) for line in lines)
    return [{**line, "method": names.get(key, line["method"])} for line, key in found
            if key in names or not line["options"]]  # fmt: skip


def _options_text(options) -> str:
    return json.dumps(options, sort_keys=True)


def _strength(lines: Sequence[dict]) -> str:
    rows = [["method", "strength", *FIGURES]]
    by_strength = sorted(lines, key=lambda line: (line["method"], line["strength"]))
    rows += [[line["method"], f"{line['strength']:g}", *(_number(n, line[n]) for n in FIGURES)] for line in by_strength]
    return _markdown(rows)


def _merging(lines: Sequence[dict]) -> str:
    """Means over seeds and both styles."""
    ways = defaultdict(list)
    for line in lines:
        styles = [value for value in line.values() if isinstance(value, dict) and "kid" in value]
        ways[line["method"], line["how"], line["weight"]] += styles
    rows = [["method", "merged by", "weight of each", *FIGURES]]
    for (method, how, weight), own in ways.items():
        means = (_number(name, float(np.mean([one[name] for one in own]))) for name in FIGURES)
        rows.append([method, how, f"{weight:g}", *means])
    return _markdown(rows)


def _subject(lines: Sequence[dict]) -> str:
    """Means over subjects."""
    ways = defaultdict(list)
    for line in lines:
        ways[line["method"], line["preserved"]].append(line)
    figures = ("subject", "leaked", "drift")
    rows = [["method", "prior preservation", *figures, "subjects"]]
    for (method, preserved), own in ways.items():
        means = (_number(name, float(np.mean([line[name] for line in own]))) for name in figures)
        rows.append([method, "yes" if preserved else "no", *means, str(len(own))])
    return _markdown(rows)


def _motion(lines: Sequence[dict]) -> str:
    """Means over seeds, and for each place and length of run the paired differences to LoRA."""
    from .motion import FIGURES as FIGURES_OF_MOTION

    modules, lines = [line for line in lines if "module" in line], [line for line in lines if "method" in line]
    ways = defaultdict(list)
    for line in lines:
        ways[line["made with"]["steps"], line["layers"], line["method"] or "the base"].append(line)
    rows = [["steps", "layers", "method", *FIGURES_OF_MOTION, "trained", "rate", "runs"]]
    for (steps, layers, method), own in ways.items():
        columns = [*FIGURES_OF_MOTION, "trained", "rate"]
        means = (_number(name, float(np.mean([line[name] for line in own]))) for name in columns)
        rows.append([str(steps), layers, method, *means, str(len(own))])
    apart = [["steps", "layers", "", *FIGURES_OF_MOTION, "pairs"]]
    for (steps, layers, method), own in ways.items():
        both = [{**line, "style": layers} for line in own + ways.get((steps, layers, REFERENCE), [])]
        found = {figure: paired(both, method, figure) for figure in FIGURES_OF_MOTION}
        if method != REFERENCE and None not in found.values():
            cells = [f"{_number(name, one.mean, '+')} ({_number(name, one.low, '+')} … {_number(name, one.high, '+')})"
                     for name, one in found.items()]  # fmt: skip
            apart.append([str(steps), layers, f"{method} − {REFERENCE}", *cells, str(found["new"].pairs)])
    figures = ("trained", "new", "off", "new alone", "off alone", "first loss", "last loss")
    beside = [["motion module of", *figures, "comes back"]]
    for line in modules:
        beside.append([line["module"], *(_number(name, line[name]) for name in figures), str(line["comes back"])])
    return "\n" + "\n".join(map(_markdown, (rows, apart, beside)))


def _candidates(lines: Sequence[dict]) -> str:
    """Means over seeds, the best of each round first."""
    tried = defaultdict(list)
    for line in lines:
        tried[line["round"], line["candidate"], line["rate"]].append(line)
    rows = [["round", "candidate", "rate", "score", *PRIMARY, "runs"]]
    order = sorted(tried.items(), key=lambda item: (item[0][0], -np.mean([line["score"] for line in item[1]])))
    for (number, name, rate), own in order:
        means = (_number(figure, float(np.mean([line[figure] for line in own]))) for figure in ("score", *PRIMARY))
        rows.append([str(number + 1), name, f"{rate:.2g}", *means, str(len(own))])
    return _markdown(rows)


def _whole_runs(lines: Sequence[dict]) -> str:
    from .candidates import name_of
    from .protocol import tuning_score

    rows = [["candidate", "rate", "score", *FIGURES]]
    for line in sorted(lines, key=tuning_score, reverse=True):
        figures = (_number(name, line[name]) for name in FIGURES)
        rows.append([name_of(line), f"{line['rate']:.2g}", _number("score", tuning_score(line)), *figures])
    return _markdown(rows)


def _difference(figure: str, difference: Difference) -> str:
    mean, low, high = (_number(figure, value, sign="+") for value in difference[:3])
    text = f"{mean} ({low} … {high}; p {difference.p:.3f})"
    is_better = (difference.mean > 0) == (PRIMARY[figure] == "higher")
    return f"**{text}**" if difference.is_clear and is_better else text


def _number(name: str, value: float, sign: str = "") -> str:
    return f"{value:{sign},.{_DIGITS.get(name, 3)}f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *body]) + "\n"
