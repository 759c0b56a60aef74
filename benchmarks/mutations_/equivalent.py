"""Mistakes that are none: what the code does is the same with them, for the reason given.

By file and function; then by the line before and after. A draw leaves them out of the rate.
"""

from .sites import Mutant

EQUIVALENT: dict[tuple[str, str], dict[tuple[str, str], str]] = {
    ("sara_core/backward/ops.py", "LinearOp.weight_gradient_factors"): {
        ("x.reshape(-1, x.shape[-1]).t().contiguous(),", "x.reshape(-1, x.shape[-1]).t(),"):
            "the same numbers in another layout, of which the sampled product is slower",
    },
    ("sara_core/backward/weight_gradient.py", "_dense"): {
        ("parts.append(rows.reshape(-1).index_select(0, position).float())",
         "parts.append(rows.reshape(-1).index_select(0, position))"):
            "they are added in float32 afterwards, to which every precision converts exactly",
    },
    ("sara_core/backward/weight_gradient.py", "_measure"): {
        ("_wait(x.device)", "pass"): "it times ways that give the same, and waits for a GPU only",
    },
    ("sara_core/selection/magnitudes.py", "_Magnitudes.at"): {
        ("magnitudes = gather(weight, index).abs().float()", "magnitudes = gather(weight, index).abs()"):
            "they are compared only, which is exact between precisions",
    },
    ("sara_core/selection/magnitudes.py", "_n_lowest"): {
        ("bound = math.inf if bound == 0 else bound * 2 if bound > 0 else bound / 2",
         "bound = math.inf if bound == 0 else bound * 3 if bound > 0 else bound / 2"):
            "whatever makes the bound larger finds the same elements in the end",
    },
    ("sara_core/merging/merge.py", "_elected_sign"): {
        ("total = values.sum(0, dtype=torch.float64).sign().float()",
         "total = values.sum(0, dtype=torch.float64).sign()"):
            "a sign is the same number in both precisions, of which one takes half the memory",
    },
    ("sara_core/delta/file_v1.py", "stream_positions"): {
        ("if len(stream) > _MANY_ESCAPES * (count + 1):", "if len(stream) >= _MANY_ESCAPES * (count + 1):"):
            "both ways give the same positions",
    },
    ("sara_core/delta/file_v1.py", "_each"): {
        ("if elements < _WORTH_THREADS:", "if elements <= _WORTH_THREADS:"):
            "the results are the same with threads or none",
    },
    ("sara_core/backward/weight_gradient.py", "_let_torch_say_that_csr_is_beta"): {
        ("torch.zeros(1, 1).to_sparse_csr()", "torch.zeros(1, 0).to_sparse_csr()"): "torch warns of any size",
    },
}


def reason(mutant: Mutant) -> str | None:
    """Why a mutant changes nothing, or None if it is not known to."""
    return EQUIVALENT.get((mutant.file, mutant.mutation.function), {}).get((mutant.original, mutant.mutated))
