"""What became of one prompt."""

import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from devtools.comfyui.client import Client, NodeProgress, PromptError, PromptInterrupted

# Longer than anything here takes on a busy machine.
LONGEST_SECONDS = 240.0
DONE, INTERRUPTED, FAILED, REFUSED, UNANSWERED, HUNG = "done", "interrupted", "failed", "refused", "unanswered", "hung"
_ERRORS = {"SaRAError", "DeltaError", "NameTakenError", "SelectionError", "UnsupportedModelError", "TrainingError"}
_SAVING = {"SaRASave", "SaRABake", "SaRAConvert"}
_SAVED_AS = "Saved as output/"


@dataclass
class Outcome:
    """kind: one of the names above; message and error: what was raised, and its class
    outputs: of each output node; seen: how far each node was seen to be"""

    prompt: dict
    kind: str
    message: str = ""
    error: str = ""
    outputs: dict = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def is_in_words(self) -> bool:
        """Whether it did not fail, or with one of this project's own errors."""
        return self.kind != FAILED or self.error.rpartition(".")[2] in _ERRORS

    @property
    def saved(self) -> list[str]:
        """What was reported as saved, relative to the output folder."""
        return list(self._saved())

    def nodes(self, class_type: str) -> dict[str, dict]:
        """Inputs of the prompt's nodes of a type, by node id."""
        return {name: node["inputs"] for name, node in self.prompt.items() if node["class_type"] == class_type}

    def steps_seen(self) -> int:
        """How many steps of its training were seen to be done."""
        return max((self.seen.get(name, 0) for name in self.nodes("SaRATrain")), default=0)

    def _saved(self) -> Iterator[str]:
        for node_id, output in self.outputs.items():
            if self.prompt[node_id]["class_type"] not in _SAVING:
                continue
            for line in "\n".join(output.get("text", [])).splitlines():
                if line.startswith(_SAVED_AS):
                    yield line.removeprefix(_SAVED_AS)
                elif self.prompt[node_id]["class_type"] != "SaRAConvert":
                    yield line


def attempt(
    client: Client, prompt: dict, on_progress: Callable[[NodeProgress], None] = lambda progress: None
) -> Outcome:
    """Run a prompt to whatever end it comes to."""
    outcome = Outcome(prompt, DONE)

    def follow(progress: NodeProgress) -> None:
        outcome.seen[progress.node_id] = max(progress.value, outcome.seen.get(progress.node_id, 0))
        on_progress(progress)

    try:
        outcome.outputs = client.run(prompt, follow, LONGEST_SECONDS)
    except PromptInterrupted as error:
        outcome.kind, outcome.message = INTERRUPTED, str(error)
    except PromptError as error:
        outcome.kind, outcome.message, outcome.error = FAILED if error.kind else REFUSED, str(error), error.kind
    except TimeoutError as error:
        outcome.kind, outcome.message = HUNG, str(error)
    except (OSError, http.client.HTTPException) as error:
        outcome.kind, outcome.message = UNANSWERED, f"{type(error).__name__}: {error}"
    return outcome
