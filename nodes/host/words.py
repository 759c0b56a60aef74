"""What ComfyUI's people call things, for the messages of sara_core's training."""

from ...sara_core.training.words import Words
from ...sara_core.wording import Sentence
from . import folders

WORDS = Words(
    model="this MODEL",
    python=Sentence("ComfyUI's Python"),
    place=lambda path: f"output/{folders.relative_to_output(path)}",
    go_on=lambda path: Sentence(
        "To go on with it, choose '{snapshot}' under resume.", snapshot=folders.snapshot_title(path)
    ),
    should_saving_fail=lambda path: Sentence(
        "Should that fail, choose '{snapshot}' under resume.", snapshot=folders.snapshot_title(path)
    ),
    other_run=Sentence("the node's settings are not what they were then"),
    same_run=Sentence("Set them back, or choose 'none' under resume for a new run."),
    other_file=Sentence("choose a file from output/{folder}, or update the pack", folder=folders.SNAPSHOTS),
)
