"""The two hosts of the tests: a server reached over HTTP, and ComfyUI's own modules in this process."""

import pytest

from devtools.browser import NONE_FOUND
from devtools.checkpoint import demo_checkpoint
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import prepare
from devtools.comfyui.server import Server
from tests.support.toy_training import data, model, output, untouched  # noqa: F401 (fixtures)


@pytest.fixture(scope="session")
def host():
    """The ComfyUI that the tests run against: COMFYUI_PATH, else the default version."""
    return prepare()


@pytest.fixture(scope="session")
def checkpoint():
    """Path of the demo's checkpoint, a trained toy model in SD1.5 layout."""
    return demo_checkpoint()


@pytest.fixture(scope="session")
def server(host, checkpoint, tmp_path_factory):
    """A running server that knows the demo's checkpoint by its file name; see devtools.comfyui.server.Server."""
    base = tmp_path_factory.mktemp("server")
    with Server(host, base, model_paths={"checkpoints": checkpoint.parent}) as running:
        yield running


@pytest.fixture(scope="session")
def comfy(host, tmp_path_factory):
    """ComfyUI in this process with the pack loaded by ComfyUI itself; see devtools.comfyui.in_process.InProcessHost."""
    return InProcessHost(host, tmp_path_factory.mktemp("comfy"))


def pytest_collection_modifyitems(config, items):
    """Of several processes (-n) none is to wait for another in the end: what takes longest begins first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.parent.name != "project")


def pytest_terminal_summary(terminalreporter):
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NONE_FOUND in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests of the page were skipped: {NONE_FOUND}.")
