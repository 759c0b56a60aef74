"""What a person does with the server: one function an action, which gives the outcomes of its prompts."""

import random
from collections.abc import Callable

from devtools.comfyui.client import Client, NodeProgress
from sara_core.training import snapshot

from . import odd_files, prompts
from .outcome import DONE, UNANSWERED, Outcome, attempt
from .site import Site, picked

Action = Callable[[Site, Client, random.Random], list[Outcome]]


def train_and_save(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    return [attempt(client, prompts.training(site, choose.choice(list(prompts.RECIPES)), "sara/trained"))]


def train_and_keep(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    """Trains and does not save."""
    return [attempt(client, prompts.training(site, choose.choice(list(prompts.RECIPES)), None))]


def train_and_draw(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    seed, strength = choose.choice(list(prompts.RECIPES)), choose.choice(prompts.STRENGTHS)
    return [attempt(client, prompts.training_and_picture(site, seed, strength))]


def cancel(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    """Cancels a training at any of its steps."""
    seed = choose.choice(list(prompts.RECIPES))
    return [cancelled(site, client, seed, at=choose.randrange(prompts.RECIPES[seed]["steps"]))]


def cancelled(site: Site, client: Client, seed: int, at: int) -> Outcome:
    """A training that is cancelled as soon as it is seen to have done so many steps, if it is not over by then."""
    is_cancelled = []
    prompt = prompts.training(site, seed, "sara/trained")
    train = prompts.node_id(prompt, "SaRATrain")

    def cancel_at_step(progress: NodeProgress) -> None:
        if progress.node_id == train and progress.value >= at and not is_cancelled:
            is_cancelled.append(True)
            client.interrupt()

    return attempt(client, prompt, cancel_at_step)


def resume(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    """Goes on from any snapshot that is there; without one, begins a run."""
    name, seed = "none", min(prompts.RECIPES)
    share = choose.random()
    if names := site.snapshots():
        name = names[int(share * len(names))]
        _, settings = snapshot.load(site.output / "sara_snapshots" / name)
        seed = settings["seed"]
    return [attempt(client, prompts.training(site, seed, "sara/trained", resume=name))]


def draw(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    return [attempt(client, prompts.picture(site, picked(choose, site.deltas()), choose, stock=False))]


def draw_with_load_lora(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    return [attempt(client, prompts.picture(site, picked(choose, site.deltas()), choose, stock=True))]


def merge(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    return [attempt(client, prompts.merging(site, choose))]


def bake(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    return [attempt(client, prompts.baking(site, choose))]


def extract(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    return [attempt(client, prompts.extracting(site, choose))]


def convert(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    """Into another format and, if it is one that Load LoRA takes, back."""
    outcomes = [attempt(client, prompts.converting(site, choose))]
    for saved in outcomes[0].saved:
        if saved.startswith("loras/") and saved.endswith(odd_files.ENDING):
            file, prefix = saved.removeprefix("loras/"), f"sara/converted_{site.next_number()}"
            outcomes.append(attempt(client, prompts.conversion(file, "sara", prefix, density=1.0)))
    return outcomes


def inspect(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    return [attempt(client, prompts.inspecting(site, choose))]


def take_odd_files(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    """Each node that reads files is given one that is none, or that is being written."""
    sound = (site.output / "sara" / site.deltas()[0]).read_bytes()
    places, outcomes = odd_files.places(site.base), []
    made = {place: odd_files.make(places[place], choose.choice(list(odd_files.MAKERS)), sound)
            for place in ("sara", "snapshots", "checkpoints")}  # fmt: skip
    try:
        names = {place: path.name for place, path in made.items()}
        for prompt in prompts.odd_choices(site, names).values():
            outcomes.append(attempt(client, prompt))
    finally:
        for path in made.values():
            odd_files.remove(path)
    name = f"{odd_files.BEGINNING}rewritten{odd_files.ENDING}"
    with odd_files.rewritten(places["sara"] / name, sound):
        for _ in range(3):
            outcomes.append(attempt(client, prompts.loading(name)))
            outcomes.append(attempt(client, prompts.conversion(name, "sara", f"sara/converted_{site.next_number()}")))
    return outcomes


def free(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    return [_asked(client.free)]


def list_nodes(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    return [_asked(client.object_info)]


def interrupt(site: Site, client: Client, choose: random.Random) -> list[Outcome]:
    """Cancel, while nothing runs."""
    return [_asked(client.interrupt)]


def _asked(request: Callable[[], object]) -> Outcome:
    try:
        request()
    except OSError as error:
        return Outcome({}, UNANSWERED, f"{type(error).__name__}: {error}")
    return Outcome({}, DONE)


ACTIONS: dict[str, Action] = {
    "train and save": train_and_save, "train and keep": train_and_keep, "train and draw": train_and_draw,
    "cancel": cancel, "resume": resume, "draw": draw, "draw with Load LoRA": draw_with_load_lora, "merge": merge,
    "bake": bake, "extract": extract, "convert": convert, "inspect": inspect, "take odd files": take_odd_files,
    "free": free, "list nodes": list_nodes, "interrupt": interrupt,
}  # fmt: skip
