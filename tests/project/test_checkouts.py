"""Two checkouts on one machine share the cache with its ComfyUI, and each runs its own code, whoever asked last."""

import os
import shlex
import subprocess
import sys
import time

import pytest

from benchmarks.lib import random_unet
from devtools.comfyui.client import Client
from devtools.comfyui.install import prepare
from devtools.comfyui.server import free_port
from devtools.packer import copy_checkout
from devtools.progress import Progress

TIMEOUT = 300.0
NODE = "SaRAApply"
NAME = 'display_name="SaRA Apply"'

# Once the other checkouts have been prepared: what a host of this one's says of the node.
PROGRAM = f"""
import sys
from pathlib import Path
from devtools.comfyui.install import prepare
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.server import Server

host, folder = prepare(), Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
if folder.name == "in process":
    print(InProcessHost(host, folder).node_class({NODE!r}).GET_SCHEMA().display_name, flush=True)
else:
    with Server(host, folder) as server:
        print(server.client.object_info({NODE!r})[{NODE!r}]["display_name"], flush=True)
"""


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory):
    """Two copies of this checkout, each with another name of one node."""
    if os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names a ComfyUI into which nothing is linked")
    folder = tmp_path_factory.mktemp("checkouts")
    found = {name: copy_checkout(folder / name) for name in ("one", "the other")}
    for name, checkout in found.items():
        source = checkout / "nodes" / "load.py"
        text = source.read_text(encoding="utf-8")
        assert text.count(NAME) == 1
        source.write_text(text.replace(NAME, f"display_name={name!r}"), encoding="utf-8")
    return found


def _start_command(checkout):
    """Prepare the host as a person does, and return the command that it says."""
    command = [sys.executable, "dev.py", "host"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("Start:"))
    return shlex.split(line.removeprefix("Start:"))


def test_the_command_that_dev_host_says_runs_this_checkouts_code(checkouts, tmp_path):
    commands = {name: _start_command(checkout) for name, checkout in checkouts.items()}
    servers = {}
    try:
        # In both orders: each starts after the other one was prepared last, and while that one starts too.
        for name, asked_last in (("the other", "one"), ("one", "the other")):
            assert _start_command(checkouts[asked_last]) == commands[asked_last]
            servers[name] = _Started(commands[name], tmp_path / f"{name}.log")
        assert {name: server.name_of_node() for name, server in servers.items()} == {name: name for name in checkouts}
    finally:
        for server in servers.values():
            server.kill()


class _Started:
    """The ComfyUI that ``command`` starts, on the CPU and a free port."""

    def __init__(self, command, log):
        port = free_port()
        options = ["--cpu", "--port", str(port), "--disable-auto-launch", "--disable-api-nodes"]
        self._client, self._log = Client(f"http://127.0.0.1:{port}"), log
        with open(log, "wb") as sink:
            self._process = subprocess.Popen(
                [*command, *options], stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
            )

    def name_of_node(self):
        deadline = time.monotonic() + TIMEOUT
        while True:
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text(errors="replace")
            try:
                return self._client.object_info(NODE)[NODE]["display_name"]
            except OSError:
                time.sleep(0.25)

    def kill(self):
        self._process.kill()
        self._process.wait()


def test_the_hosts_of_the_tests_run_their_own_checkouts_code(checkouts, tmp_path):
    """All have prepared before any goes on, a third one last, and then they go on at once."""
    kinds = dict(zip(checkouts, ("in process", "server"), strict=True))
    processes = {}
    try:
        for name, checkout in checkouts.items():
            with open(tmp_path / f"{name}.log", "wb") as log:
                processes[name] = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, str(tmp_path / kinds[name])], cwd=checkout, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )  # fmt: skip
        ready = {name: process.stdout.readline() for name, process in processes.items()}
        prepare()
        for process in processes.values():
            process.stdin.close()
        said = {name: [ready[name], *process.stdout] for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    expected = {name: ["ready\n", f"{name}\n"] for name in checkouts}
    assert said == expected, "".join(log.read_text(errors="replace") for log in tmp_path.glob("*.log"))


def test_the_random_weights_of_other_code_are_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SARA_CACHE", str(tmp_path))
    monkeypatch.setattr(random_unet, "run_module", lambda module, arguments: open(arguments[1], "wb").close())
    ours = random_unet.unet_file("small", Progress())
    monkeypatch.setattr(random_unet, "random_weights", lambda layout: "what another checkout writes")
    theirs = random_unet.unet_file("small", Progress())
    assert ours != theirs and ours.exists() and theirs.exists()
