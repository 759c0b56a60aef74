"""What a scanner of node packs says of the files that are published: how many findings of which kind.

    python dev.py bench scanner --nodesafe PATH [--list KIND]

PATH is the command nodesafe in an environment of its own (pip install nodesafe==0.6.0). docs/security.md has the
figures.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.startup import install


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench scanner", description=__doc__.splitlines()[0])
    parser.add_argument("--nodesafe", type=Path, required=True, metavar="PATH", help="the scanner's command")
    parser.add_argument("--list", metavar="KIND", help="the places of one kind, as the table calls it")
    arguments = parser.parse_args()
    if not arguments.nodesafe.is_file():
        parser.error(f"{arguments.nodesafe} does not exist")
    report = scanned(arguments.nodesafe)
    findings = report["findings"]
    if arguments.list is not None:
        print("\n".join(f"{one['file']}:{one['line']}" for one in findings if kind(one["title"]) == arguments.list))
        return 0
    verdict = report["verdict"]
    print(f"{verdict['label']}, score {verdict['score']}, {len(findings)} findings")
    for (severity, title), count in counted(findings):
        print(f"{count:5} {severity:8} {title}")
    return 0


def scanned(command: Path) -> dict:
    """The scanner's report on a copy of the published files, in a folder of no particular name."""
    with tempfile.TemporaryDirectory(prefix="pack-") as folder:
        install(Path(folder))
        result = subprocess.run(
            [command, "scan", folder, "--format", "json", "--fail-on", "none"], capture_output=True, text=True
        )
    if result.returncode:
        sys.exit(f"The scanner failed: {result.stderr.strip()[-500:]}")
    return json.loads(result.stdout)


def kind(title: str) -> str:
    """A finding's title without what only its place has: "identifier '_x'", "literal (92 chars)"."""
    return re.sub(r" \(.*?\)| '.*'", "", title)


def counted(findings: list[dict]) -> list[tuple[tuple[str, str], int]]:
    """((severity, kind), number), the most first."""
    return Counter((one["severity"], kind(one["title"])) for one in findings).most_common()


if __name__ == "__main__":
    sys.exit(main())
