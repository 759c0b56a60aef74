"""What a file of lines has as yet, also while it is being written: the tries by method, and the table of the cells.

    python -m benchmarks.claims_.so_far FILE [--beside METHOD]
"""

import argparse
from pathlib import Path

from . import lines, plan, protocol, tables


def report(known: list[dict], beside: str = protocol.REFERENCE) -> list[str]:
    """Lines of text about lines of the claims' table; those of parts beside it are only counted. beside: the method
    that the others are compared with"""
    names = {*protocol.Cell._fields, *protocol.PRIMARY}
    own = [line for line in known if line.keys() >= names and not line["options"]]
    # On the tuning style other seeds are those of the candidates.
    whole = [line for line in own if line["style"] != protocol.TUNING_STYLE or line["seed"] == plan.TUNING_SEED]
    tries = [line for line in whole if line["style"] == protocol.TUNING_STYLE]
    cells = [line for line in whole if line["style"] != protocol.TUNING_STYLE]
    text = [f"{len(tries)} tries, {len(cells)} cells, {len(known) - len(whole)} other lines"]
    for line in sorted(tries, key=lambda line: (line["method"], line["share"], line["rate"])):
        figures = " ".join(f"{name} {line[name]:.3f}" for name in protocol.PRIMARY)
        score = protocol.tuning_score(line)
        text.append(f"{line['method']} {line['share']:.2%} at {line['rate']:.2e}: score {score:.3f} ({figures})")
    return [*text, *([tables.of_methods(cells, beside)] if cells else [])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--beside", default=protocol.REFERENCE, help="what differences are to (default: %(default)s)")
    arguments = parser.parse_args()
    print("\n".join(report(lines.read(arguments.file), arguments.beside)))
