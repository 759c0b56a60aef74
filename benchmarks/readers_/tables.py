"""The results of `python dev.py bench readers` as the table in docs/conversion.md."""

from collections.abc import Mapping

COLUMNS = {
    ("comfyui", "lora"): "ComfyUI", ("diffusers", "lora"): "diffusers", ("invokeai", "lora"): "InvokeAI",
    ("kohya", "lora"): "kohya", ("comfyui", "diff"): "`diff`: ComfyUI", ("diffusers", "diff"): "diffusers",
    ("invokeai", "diff"): "InvokeAI", ("peft", "shira"): "`shira`: PEFT",
}  # fmt: skip


def markdown(report: Mapping) -> list[str]:
    """A row a family, a column for each format and program."""
    results = {(result["family"], result["reader"], result["format"]): result for result in report["results"]}
    families = list(dict.fromkeys(family for family, _, _ in results))
    header = ["family", *COLUMNS.values()]
    header[1] = f"`lora`: {header[1]}"
    rows = [[family, *(cell(results[(family, *column)]) for column in COLUMNS)] for family in families]
    return [_row(header), _row(["---"] * len(header)), *map(_row, rows)]


def cell(result: Mapping) -> str:
    """What became of the delta, in a word or two."""
    if result["outcome"] != "arrived":
        return result["outcome"]
    if not result["missing"]:
        return "everything"
    if result["format"] == "shira":
        return "Linear layers"
    return "layers" if len(result["left_out"]) < 2 else "blocks"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
