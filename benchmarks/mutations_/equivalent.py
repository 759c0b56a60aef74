"""Mistakes that are none: what the code does is the same with them, for the reason given.

By file and function; then by the line before and after. A draw leaves them out of the rate.
"""

from .sites import Mutant


def _other_sizes(line: str, size: str, *others: str) -> dict[tuple[str, str], str]:
    """Of a line that says how much is worked on at a time: the results are the same with any size above 0."""
    assert line.endswith(size)
    said = line.removesuffix(size)
    return {(line, said + other): "how much is held at a time; the results are the same" for other in others}


_WHOLE_NAME = "a layer's weight is asked for by its whole name, whichever part of it is the parameter's own"
EQUIVALENT: dict[tuple[str, str], dict[tuple[str, str], str]] = {
    ("sara_core/backward/ops.py", ""): {
        **_other_sizes("UNFOLD_BYTES = 24 << 20", "24 << 20", "25 << 20", "24 << 21"),
        # Not 24 << 21: as the line above it says, that is too much for the system's malloc.
        **_other_sizes("WEIGHT_COPY_BYTES = 24 << 20", "24 << 20", "25 << 20"),
    },
    ("sara_core/backward/weight_gradient.py", ""): _other_sizes(
        "DENSE_BYTES = 16 << 20", "16 << 20", "17 << 20", "16 << 21"
    ),
    ("sara_core/models/comparison.py", ""): _other_sizes("CHUNK = 1 << 21", "1 << 21", "1 << 22"),
    ("sara_core/models/comparison.py", "rounded_alike"): {
        ("alike |= (fine.float() - coarse).abs() <= (_step(fine) + _step(coarse)) / 2",
         "alike |= (fine - coarse).abs() <= (_step(fine) + _step(coarse)) / 2"):
            "one is float16 and the other bfloat16, which torch subtracts in float32",
    },
    ("sara_core/models/quantised/int8.py", "Int8.dequantised"): {
        ('weight = layer.tensors["weight"].float() * self._scale(layer)',
         'weight = layer.tensors["weight"] * self._scale(layer)'):
            "int8 times float32 is formed in float32",
    },
    ("sara_core/models/quantised/int8.py", "Int8.add"): {
        ("rows = blocks.Blocks(weight, scale.view(-1).clone())", "rows = blocks.Blocks(weight, scale.view(-1))"):
            "the layer was read for this change alone, and what is returned is the same",
    },
    ("sara_core/models/quantised/w4a4.py", "ConvRotW4A4.dequantised"): {
        ("return rotation.turned(layer, codes.float() * scale.view(-1, 1))",
         "return rotation.turned(layer, codes * scale.view(-1, 1))"):
            "int8 times float32 is formed in float32",
    },
    ("sara_core/models/samples.py", "_elements"): {
        ("codes = weight.detach()", "codes = weight"): "what is gathered has no graph, nor have the bytes of float8",
    },
    ("sara_core/models/survey.py", ""): _other_sizes("_CHUNK = 1 << 21", "1 << 21", "1 << 22"),
    ("sara_core/models/rewriting.py", ""): _other_sizes("_CHUNK = 1 << 24", "1 << 24", "1 << 25"),
    ("sara_core/models/quantised/elements.py", ""): _other_sizes("CHUNK = 2**20", "2**20", "3**20", "2**21"),
    ("sara_core/conversion/adapters/readings.py", ""): _other_sizes("_CHUNK = 2**20", "2**20", "3**20", "2**21"),
    ("sara_core/selection/magnitudes.py", ""): {
        **_other_sizes("CHUNK = 1 << 22", "1 << 22", "1 << 23"),
        ("SAMPLE = 1 << 20", "SAMPLE = 1 << 21"):
            "another sample guesses another bound, within which the same elements are found",
        ("MARGIN = 1.15", "MARGIN = 2.3"):
            "another guess at a bound, within which the same elements are found",
    },
    ("sara_core/selection/gradient.py", ""): {
        ("NO_BOUND = 1e-30", "NO_BOUND = 2e-30"): "0 is tried one round earlier; the elements found are the same",
    },
    ("sara_core/selection/gradient.py", "GradientScores.largest"): {
        ("bounds.update((name, bounds[name] / 2 if bounds[name] > NO_BOUND else 0.0) for name in retried)",
         "bounds.update((name, bounds[name] / 2 if bounds[name] >= NO_BOUND else 0.0) for name in retried)"):
            "at exactly that bound one more is tried before 0; the elements found are the same",
        ("bounds.update((name, bounds[name] / 2 if bounds[name] > NO_BOUND else 0.0) for name in retried)",
         "bounds.update((name, bounds[name] / 3 if bounds[name] > NO_BOUND else 0.0) for name in retried)"):
            "whatever makes the bound smaller finds the same elements in the end",
    },
    ("sara_core/delta/file_v1.py", ""): {
        ("_MANY_ESCAPES = 8 # for each position", "_MANY_ESCAPES = 9 # for each position"):
            "both ways give the same positions",
        ("_THREADS = min(8, os.cpu_count() or 1)", "_THREADS = min(9, os.cpu_count() or 1)"):
            "the results are the same with any number of threads",
        **_other_sizes("_WAITING = 2 * _THREADS", "2 * _THREADS", "3 * _THREADS"),
        ("_WORTH_THREADS = 500_000", "_WORTH_THREADS = 500001"): "the results are the same with threads or none",
        ("_INT32_MAX = 2**31 - 1", "_INT32_MAX = 2**31 - 0"):
            "an upper bound of 2^31 is that of a sum of at most 2^31 - count, as no end is 255: int32 holds it",
    },
    ("sara_core/delta/delta.py", "AppliedDelta.__init__"): {
        **{("self._number = -1", f"self._number = {other}"): "it counts once a weight is changed, and is another then"
           for other in ("-0", "1")},
    },
    ("sara_core/backward/store.py", ""): {
        **_other_sizes("WRITING_THREADS = 4", "4", "5"),
        **_other_sizes("WORTH_THREADS = 20_000_000", "20_000_000", "20000001"),
        **_other_sizes("THREAD_ELEMENTS = 1 << 18", "1 << 18", "1 << 19"),
    },
    ("sara_core/backward/transposed.py", ""): _other_sizes("TOGETHER_BYTES = 2 << 20", "2 << 20", "3 << 20", "2 << 21"),
    ("sara_core/backward/transposed.py", "transposed_parts"): {
        ("yield from (part.to(dtype).t().contiguous() for part in matrix.split(rows))",
         "yield from (part.to(dtype).t() for part in matrix.split(rows))"):
            "the same numbers in another layout, of which the sampled product is slower",
    },
    ("sara_core/backward/weight_gradient.py", "_add_dense_"): {
        ("parts.append(rows.reshape(-1).index_select(0, segment.flat(first, last)).float())",
         "parts.append(rows.reshape(-1).index_select(0, segment.flat(first, last)))"):
            "they are added in float32 afterwards, to which every precision converts exactly",
    },
    ("sara_core/backward/weight_gradient.py", "_with_sampled_product"): {
        ("pattern = torch.sparse_csr_tensor(crow, col, total, size=(len(a), len(b)), check_invariants=False)",
         "pattern = torch.sparse_csr_tensor(crow, col, total, size=(len(a), len(b)), check_invariants=True)"):
            "the rows and columns of a segment are sound, so that a check of them takes time alone",
    },
    ("sara_core/backward/weight_gradient.py", "_measure"): {
        ("_wait(x.device)", "pass"): "it times ways that give the same, and waits for a GPU only",
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
        ("could_overflow = len(stream) * ESCAPE + count > _INT32_MAX",
         "could_overflow = len(stream) * ESCAPE + count >= _INT32_MAX"):
            "what the sum then refuses, the last position would be refused for, in the same words",
    },
    ("sara_core/delta/file_v1.py", "_each"): {
        ("if len(waiting) == _WAITING:", "if len(waiting) != _WAITING:"):
            "each is waited for before the next begins; the results are the same, in order",
        ("if elements < _WORTH_THREADS:", "if elements <= _WORTH_THREADS:"):
            "the results are the same with threads or none",
    },
    ("sara_core/training/block_moments.py", "_InTwoParts._parts"): {
        ("parts = [torch.nn.Parameter(part) for part in vector.detach().tensor_split([border])]",
         "parts = [torch.nn.Parameter(part) for part in vector.tensor_split([border])]"):
            "a Parameter is made of the tensor without its graph",
    },
    ("sara_core/training/presets.py", ""): {
        ("_MEASURED_ON = 860_000_000", "_MEASURED_ON = 860000001"):
            "a round number of weights: one more moves the sizes at which the advice changes by one weight or two",
    },
    ("sara_core/training/low_rank.py", "drawing_probabilities"): {
        ("beyond = (best >= 1) & ~certain", "beyond = (best > 1) & ~certain"):
            "what comes to exactly 1 has that probability either way",
    },
    **dict.fromkeys(
        [("sara_core/selection/trainable.py", refusal) for refusal in ("_refuse_computed", "_refuse_quantised")],
        {("if choice.takes([NamedParameter(name, LAYER_WEIGHT, 0)]):",
          "if choice.takes([NamedParameter(name, LAYER_WEIGHT, 1)]):"): _WHOLE_NAME},
    ),
    ("sara_core/selection/trainable.py", "_occurrence"): {
        ("return _Occurrence(NamedParameter(name, LAYER_WEIGHT, 0), module)",
         "return _Occurrence(NamedParameter(name, LAYER_WEIGHT, 1), module)"): _WHOLE_NAME,
    },
    ("sara_core/backward/weight_gradient.py", "_let_torch_say_that_csr_is_beta"): {
        ("torch.zeros(1, 1).to_sparse_csr()", "torch.zeros(1, 0).to_sparse_csr()"): "torch warns of any size",
    },
}


def reason(mutant: Mutant) -> str | None:
    """Why a mutant changes nothing, or None if it is not known to."""
    return EQUIVALENT.get((mutant.file, mutant.mutation.function), {}).get((mutant.original, mutant.mutated))
