"""ComfyUI's page in a real browser, as tests of the page use it."""

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devtools.comfyui.server import Server

CLASSIC, NODES_2 = "classic", "nodes2"
RENDERERS = (CLASSIC, NODES_2)
SIZE = {"width": 1600, "height": 1000}  # pixels
TIMEOUT = 60_000  # ms

# The pack's extensions and node classes are there, and the page takes commands.
IS_READY = """() => window.app?.graph && window.app.extensionManager?.command
  && window.LiteGraph?.registered_node_types?.SaRATrain && !document.querySelector("#splash-loader")"""

# What ComfyUI's page itself complains of, with no pack at all.
HOSTS_OWN_COMPLAINTS = (
    "user.css",  # a style sheet that a user may write
    "/api/userdata",  # folders and files of a user who is new
    "ComfyApp graph accessed before initialization",
    "huggingface.co",  # where it offers to download what a workflow lacks; the server lets it connect nowhere
)


class ComfyPage:
    """One tab of a browser, with an empty graph in front.

    Attributes:
        page: Playwright's page, for whatever this class has no word for.
        renderer: CLASSIC or NODES_2.
        server: the Server whose page it is.
    """

    def __init__(self, browser, server: Server, renderer: str, **context: Any):
        self.server, self.renderer = server, renderer
        self._complaints: list[str] = []
        set_setting(server, "Comfy.TutorialCompleted", True)  # or the first visit opens the templates
        set_setting(server, "Comfy.VueNodes.Enabled", renderer == NODES_2)
        self._context = browser.new_context(viewport=SIZE, **context)
        self.page = self._context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self._complaints.append(f"{error.name}: {error.message}"))
        self.open()
        self._clear_graph()  # of the workflow that a new user gets

    def open(self) -> None:
        """Load the page anew, as a reload does; what it says while it loads counts."""
        self.page.goto(self.server.client.address, wait_until="domcontentloaded")
        self.page.wait_for_function(IS_READY)
        self.settle()

    def close(self) -> None:
        self._context.close()

    def settle(self, milliseconds: int = 300) -> None:
        """Let the page draw, and hear what it has to say."""
        self.page.wait_for_timeout(milliseconds)

    def empty(self) -> None:
        """An empty graph in front, and no complaint of before."""
        self.page.keyboard.press("Escape")
        self._clear_graph()
        self._complaints.clear()

    def _clear_graph(self) -> None:
        self.page.evaluate("() => { app.canvas.setGraph?.(app.rootGraph ?? app.graph); app.graph.clear() }")
        self.settle(100)

    def complaints(self, *also_known: str) -> list[str]:
        """What the console has had to say so far, errors only, without the host's own."""
        known = (*HOSTS_OWN_COMPLAINTS, *also_known)
        return [text for text in self._complaints if not any(part in text for part in known)]

    def expect_complaint(self, *parts: str) -> None:
        """Take away complaints in which one of these stands; there must be one for each."""
        for part in parts:
            assert any(part in text for text in self._complaints), (part, self._complaints)
        self._complaints = [text for text in self._complaints if not any(part in text for part in parts)]

    def load(self, workflow: dict | Path) -> None:
        """Open a saved workflow, as dropping its file on the page does."""
        if isinstance(workflow, Path):
            workflow = json.loads(workflow.read_text(encoding="utf-8"))
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.settle(500)

    def add(self, node_class: str, at: tuple[int, int] = (100, 100)) -> int:
        """A new node of a class; its id."""
        script = """([type, at]) => {
          const node = LiteGraph.createNode(type); app.graph.add(node); node.pos = at; return node.id }"""
        return self.page.evaluate(script, [node_class, list(at)])

    def connect(self, origin: int, output: str, target: int, into: str) -> None:
        """A wire between two nodes, by the names of output and input."""
        script = """([origin, output, target, into]) => {
          const [from, to] = [app.graph.getNodeById(origin), app.graph.getNodeById(target)]
          return Boolean(from.connect(from.findOutputSlot(output), to, to.findInputSlot(into))) }"""
        assert self.page.evaluate(script, [origin, output, target, into]), (origin, output, target, into)

    def node(self, node_class: str) -> int:
        """The id of the graph's one node of a class."""
        script = "type => app.graph.nodes.filter((node) => node.type === type).map((node) => node.id)"
        (only,) = self.page.evaluate(script, node_class)
        return only

    def node_types(self) -> list[str]:
        """The classes of the graph's nodes, sorted."""
        return sorted(self.page.evaluate("() => app.graph.nodes.map((node) => node.type)"))

    def widget(self, node: int, name: str) -> Any:
        """The value of a widget."""
        script = "([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value"
        return self.page.evaluate(script, [node, name])

    def set_widget(self, node: int, name: str, value: Any) -> None:
        """Change a widget as its user does: its callback hears of it."""
        script = """([id, name, value]) => {
          const node = app.graph.getNodeById(id), widget = node.widgets.find((w) => w.name === name)
          widget.value = value
          widget.callback?.(value, app.canvas, node) }"""
        self.page.evaluate(script, [node, name, value])

    def queue(self) -> str:
        """Press Run; the id of the prompt. The page must not refuse it."""
        with self.page.expect_response(lambda answer: answer.url.split("?")[0].endswith("/prompt")) as caught:
            self.page.evaluate("() => { app.queuePrompt(0) }")
        answer = caught.value.json()
        assert "prompt_id" in answer, answer
        return answer["prompt_id"]

    def history(self, prompt_id: str) -> dict | None:
        """What the server keeps of a prompt that is over; None before."""
        with urllib.request.urlopen(f"{self.server.client.address}/history/{prompt_id}", timeout=TIMEOUT) as answer:
            return json.loads(answer.read()).get(prompt_id)

    def wait(self, prompt_id: str, seconds: float = 120) -> dict:
        """The history of a prompt once it is over, however it ended."""
        self.until(lambda: self.history(prompt_id) is not None, seconds)
        return self.history(prompt_id)

    def run(self) -> dict[str, dict]:
        """Press Run and wait; the ``ui`` outputs by node id. The run must end well."""
        over = self.wait(self.queue())
        assert over["status"]["status_str"] == "success", over["status"]["messages"]
        self.settle()
        return over["outputs"]

    def until(self, is_so: Callable[[], Any], seconds: float = 30) -> Any:
        """What ``is_so`` returns once that is true; the page goes on meanwhile.

        Raises:
            TimeoutError: it was not true in time.
        """
        deadline = time.monotonic() + seconds
        while not (answer := is_so()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"It was not so after {seconds:.0f} s. {self.complaints()}")
            self.page.wait_for_timeout(100)
        return answer

    def show(self) -> None:
        """The whole graph in view."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.settle(600)

    def screenshot(self, file: Path) -> Path:
        """A picture of the tab, as PNG."""
        self.page.screenshot(path=file)
        return file

    def _hear(self, message) -> None:
        if message.type == "error":
            self._complaints.append(f"{message.text} ({message.location.get('url', '')})")


def set_setting(server: Server, name: str, value: Any) -> None:
    """Change a setting of the page for whoever opens it from now on."""
    body = json.dumps(value).encode()
    request = urllib.request.Request(
        f"{server.client.address}/settings/{name}", body, {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=TIMEOUT).close()
