"""The results as a table."""

from collections import Counter


def markdown(report: dict) -> list[str]:
    """A row a case, and under the table how many of each outcome there are."""
    results, versions = report["results"], report["versions"]
    lines = ["| class | family | outcome | gradients | slope | loss |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [_row(result) for result in results]
    classes: dict[str, set[str]] = {}
    for result in results:
        classes.setdefault(result["class"], set()).add(result["outcome"])
    alike = Counter(next(iter(outcomes)) if len(outcomes) == 1 else "differ by case" for outcomes in classes.values())
    return [*lines, "", f"ComfyUI {versions['ComfyUI']}, torch {versions['torch']}.",
            f"{len(classes)} classes: {_counts(alike)}.",
            f"{len(results)} cases: {_counts(Counter(result['outcome'] for result in results))}."]  # fmt: skip


def _row(result: dict) -> str:
    outcome = f"{result['outcome']}: {result['why']}" if "why" in result else result["outcome"]
    figures = ["", "", ""]
    if "first loss" in result:
        figures = [f"{result['gradient error']:.1e}", f"{result['slope error']:.1e}",
                   f"{result['first loss']:.3g} → {result['last loss']:.3g}"]  # fmt: skip
    case = result["case"] if result["case"].startswith(result["class"]) else f"{result['class']} as {result['case']}"
    return "| " + " | ".join([case, result.get("family", ""), outcome.replace("|", "/"), *figures]) + " |"


def _counts(counted: Counter) -> str:
    return ", ".join(f"{number} {what}" for what, number in counted.most_common())
