"""What ComfyUI's people call things, for the messages of sara_core's training."""

from ...sara_core.training.words import Words
from . import folders

WORDS = Words(
    model="this MODEL",
    python="ComfyUI's Python",
    place=lambda path: f"output/{folders.relative_to_output(path)}",
    go_on=lambda path: f"To go on with it, choose '{folders.snapshot_title(path)}' under resume.",
    should_saving_fail=lambda path: f"Should that fail, choose '{folders.snapshot_title(path)}' under resume.",
    other_run="the node's settings are not what they were then",
    same_run="Set them back, or choose 'none' under resume for a new run.",
    other_file=f"choose a file from output/{folders.SNAPSHOTS}, or update the pack",
)
