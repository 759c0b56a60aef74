"""What a file of lines has as yet, also while it is being written: the tries by method, the table of the cells, the
candidates' first round, and the parts that have lines of their own kind.

    python -m benchmarks.claims_.so_far FILE [--beside METHOD]
"""

import argparse
from pathlib import Path

from . import candidates, lines, plan, protocol, tables

PARTS = ("premise", "strength", "merging", "subject")


def report(known: list[dict], beside: str = protocol.REFERENCE) -> list[str]:
    """Lines of text about lines of the claims. beside: the method that the others are compared with"""
    names = {*protocol.Cell._fields, *protocol.PRIMARY}
    whole = [line for line in known if line.keys() >= names and "part" not in line]
    tries = [line for line in whole if line["style"] == protocol.TUNING_STYLE and line["seed"] == plan.TUNING_SEED]
    cells = tables.named_methods([line for line in whole if line["style"] != protocol.TUNING_STYLE])
    of_parts = {"candidates": candidates.first_round(whole)}
    of_parts |= {part: [line for line in known if line.get("part") == part] for part in PARTS}
    others = len(known) - len(tries) - len(cells) - sum(map(len, of_parts.values()))
    text = [f"{len(tries)} tries, {len(cells)} cells, {others} other lines"]
    for line in sorted(tries, key=lambda line: (line["method"], line["share"], line["rate"])):
        figures = " ".join(f"{name} {line[name]:.3f}" for name in protocol.PRIMARY)
        score = protocol.tuning_score(line)
        text.append(f"{line['method']} {line['share']:.2%} at {line['rate']:.2e}: score {score:.3f} ({figures})")
    if cells:
        text.append(tables.of_methods(cells, (beside,)))
    return text + [tables.of_part(part, own) for part, own in of_parts.items() if own]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--beside", default=protocol.REFERENCE, help="what differences are to (default: %(default)s)")
    arguments = parser.parse_args()
    print("\n".join(report(lines.read(arguments.file), arguments.beside)))
