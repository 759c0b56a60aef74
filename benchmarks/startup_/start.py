"""Starts ComfyUI as its main.py does, up to where it would listen, and says what that took.

    python -m benchmarks.startup_.start HOST BASE RESULT

HOST: ComfyUI's folder. BASE: the folder with custom_nodes and the rest. RESULT: where the figures go, as JSON: the
process' `cpu` seconds from its beginning, `memory` in MiB, and `packs`: of each pack in BASE the `cpu` and `wall`
seconds of loading it, the `memory` in MiB by which that grew the process, and the number of `modules` that came.
"""

import json
import sys
import time
from pathlib import Path

from benchmarks.lib.memory import memory

RESIDENT = "VmRSS"


def main() -> None:
    host, base, result = sys.argv[1:]
    sys.dont_write_bytecode = False  # an installed pack is compiled once, not at every start
    # Its own arguments; and first place, because this repository has a `nodes` folder, ComfyUI a `nodes` module.
    sys.argv[1:] = [
        "--base-directory", base, "--cpu", "--disable-api-nodes", "--quick-test-for-ci",
        "--database-url", "sqlite:///:memory:",
    ]  # fmt: skip
    sys.path.insert(0, host)
    import main as comfyui

    import nodes

    packs: dict[str, dict] = {}
    load_custom_node = nodes.load_custom_node

    async def measured(path: str, *arguments, **options) -> bool:
        if Path(path).parent != Path(base, "custom_nodes"):  # core's own extra nodes come by the same way
            return await load_custom_node(path, *arguments, **options)
        before = state()
        loaded = await load_custom_node(path, *arguments, **options)
        packs[Path(path).name] = {name: value - before[name] for name, value in state().items()} | {"loaded": loaded}
        return loaded

    nodes.load_custom_node = measured
    try:
        comfyui.start_comfyui()
    except SystemExit:  # all is loaded: so --quick-test-for-ci ends
        whole = state()
        figures = {"cpu": whole["cpu"], "memory": whole["memory"], "packs": packs}
        Path(result).write_text(json.dumps(figures), encoding="utf-8")


def state() -> dict:
    return {
        "cpu": time.process_time(), "wall": time.perf_counter(), "memory": memory(RESIDENT),
        "modules": len(sys.modules),
    }  # fmt: skip


if __name__ == "__main__":
    main()
