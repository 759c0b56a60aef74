"""ComfyUI in this process, on the CPU: its nodes can be called one by one, as its executor calls them.

Imports of comfy are local: importing them decides the device, so it must come after the arguments are set.
"""

import asyncio
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from .install import Host, link_pack, make_base


class NodeResult(NamedTuple):
    """What a node returned: one value per output (a list where the output is a list), and its ``ui`` data."""

    outputs: tuple
    ui: dict


class InProcessHost:
    """A started host with core's nodes and the pack loaded; there can be only one in a process.

    Args:
        base: the folder that holds models, input, output and so on, as with ComfyUI's --base-directory.
        device: "cpu", or "cuda" for whatever ComfyUI chooses by itself.
    """

    def __init__(self, host: Host, base: Path, device: str = "cpu"):
        if "comfy.cli_args" in sys.modules:
            raise RuntimeError("ComfyUI is already imported in this process, perhaps with other arguments.")
        # First place: this repository has a `nodes` folder, ComfyUI a `nodes` module.
        sys.path.insert(0, str(host.folder))
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        make_base(base)
        self.base = base
        self._start(device)

    def _start(self, device: str) -> None:
        from comfy.cli_args import args

        args.cpu = device == "cpu"
        args.base_directory = str(self.base)
        import execution
        import folder_paths

        import nodes

        self.nodes, self.folder_paths, self._execution = nodes, folder_paths, execution
        # What main.py does beside --base-directory: saved checkpoints and loras are offered for loading.
        for kind in ("checkpoints", "loras"):
            folder_paths.add_model_folder_path(kind, str(self.base / "output" / kind))
        asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        link = link_pack(self.base / "custom_nodes")
        if not asyncio.run(nodes.load_custom_node(str(link), module_parent="custom_nodes")):
            raise RuntimeError("ComfyUI could not load the pack; its log says why.")
        self._pack_name = str(link).replace(".", "_x_")

    def pack_module(self, name: str = "") -> ModuleType:
        """A module of the pack as the host has it, for example ``sara_core.delta``.

        It is not the module of the same name that ``import sara_core`` gives: their classes differ.
        """
        return importlib.import_module(f"{self._pack_name}.{name}" if name else self._pack_name)

    def node_class(self, node_id: str) -> type:
        """The class behind a node id."""
        return self.nodes.NODE_CLASS_MAPPINGS[node_id]

    def execute(self, node_id: str, **inputs: Any) -> NodeResult:
        """Run one node as ComfyUI's executor does: under inference mode, on a locked clone of the class.

        inputs: values by input name; widgets left out take their defaults. A node that takes lists gets a Python
        list as the list itself, anything else as a list of one.
        """
        import torch

        node_class = self.node_class(node_id)
        inputs = {**self._defaults(node_class), **inputs}
        lists, _, v3_data = self._execution.get_input_data(inputs, node_class, "1")
        if getattr(node_class, "INPUT_IS_LIST", False):
            lists.update({name: value for name, value in inputs.items() if isinstance(value, list)})
        with torch.inference_mode():
            output, ui, _, _ = asyncio.run(
                self._execution.get_output_data("prompt", "1", node_class(), lists, v3_data=v3_data)
            )
        is_list = getattr(node_class, "OUTPUT_IS_LIST", None) or [False] * len(output)
        return NodeResult(tuple(v if listed else v[0] for v, listed in zip(output, is_list, strict=True)), ui)

    @staticmethod
    def _defaults(node_class: type) -> dict[str, Any]:
        defaults = {}
        for specification in node_class.INPUT_TYPES().get("required", {}).items():
            name, (kind, *options) = specification
            options = options[0] if options else {}
            if "default" in options:
                defaults[name] = options["default"]
            elif isinstance(kind, list) and kind:
                defaults[name] = kind[0]
            elif kind == "COMBO" and options.get("options"):
                defaults[name] = options["options"][0]
        return defaults
