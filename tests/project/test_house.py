"""The rules of the house (CONTRIBUTING.md) that a program can check."""

import ast
import fnmatch
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.published import PUBLISHED

ROOT = Path(__file__).resolve().parents[2]

LIBRARIES = {"torch", "numpy", "safetensors"}
# What a node may use of the host; everything else of comfy is its insides, known only in nodes/host.
HOST_INTERFACE = {"comfy_api", "comfy_execution", "folder_paths", "comfy.utils", "comfy.model_management"}
OWN_PACKAGES = {"sara_core", "nodes", "devtools", "demo", "benchmarks", "tests"}
DANGEROUS_MODULES = {
    "pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess", "multiprocessing", "pty",
    "pip", "ensurepip", "venv", "socket", "ssl", "ftplib", "smtplib", "http", "urllib", "xmlrpc", "requests", "httpx",
    "aiohttp", "websocket", "websockets", "huggingface_hub",
}  # fmt: skip
# How the host's own server is answered through; nothing is opened or connected to.
ALLOWED = {
    "nodes/host/report.py": {"aiohttp.web"},
    "nodes/host/web/routes.py": {"aiohttp.web"},
    "nodes/host/web/datasets.py": {"aiohttp.web"},
    "nodes/host/web/deltas.py": {"aiohttp.web"},
    "nodes/host/web/help.py": {"aiohttp.web"},
    "sara_webui/api/guard.py": {"urllib.parse"},
}
DANGEROUS_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile", "os.exec*", "os.spawn*",
    "os.fork", "torch.hub.*",
}  # fmt: skip

# For ever: a saved workflow names them. Inputs may be added, optional ones at the end; nothing here may change.
NODES = {
    "SaRATrain": (
        ["model", "latents", "positive", "select_by", "density", "count", "threshold", "steps", "batch_size",
         "grad_accumulation", "learning_rate", "max_grad_norm", "gradient_checkpointing", "seed"],
        ["SARA_DELTA", "LOSS_MAP"],
    ),
    "SaRATrainOptions": (
        ["optimizer", "schedule", "warmup_steps", "weight_decay", "noise_levels", "noise_level_mean",
         "noise_level_std", "min_snr_gamma", "caption_dropout", "selection_rule", "per_layer", "snapshot_every",
         "snapshots_kept", "checkpoint_depth"],
        ["SARA_OPTIONS"],
    ),
    "SaRATrainSamples": (["positive", "vae", "every", "steps", "cfg"], ["SARA_SAMPLES"]),
    "SaRASave": (["delta", "filename_prefix", "values"], ["SARA_DELTA"]),
    "SaRALoader": (["sara_name", "strength"], ["MODEL", "SARA_DELTA", "CLIP", "STRING"]),
    "SaRAApply": (["model", "delta", "strength"], ["MODEL", "CLIP"]),
    "SaRABake": (["ckpt_name", "delta", "strength", "filename_prefix"], ["STRING"]),
    "SaRAMerge": (
        ["deltas", "weights", "method", "keep", "sign", "seed", "preset", "blocks"],
        ["SARA_DELTA", "STRING", "IMAGE"],
    ),
    "SaRAExtract": (["base_name", "tuned_name", "select_by", "density", "count"], ["SARA_DELTA", "STRING", "IMAGE"]),
    "SaRAInspect": (["threshold"], ["STRING", "IMAGE", "MODEL"]),
    "SaRAConvert": (
        ["file_name", "base_name", "density", "to", "rank", "filename_prefix"], ["SARA_DELTA", "STRING"],
    ),
    "SaRADataset": (
        ["folders", "trigger", "caption", "resolution", "buckets", "flip"],
        ["IMAGE", "STRING", "STRING", "STRING", "LATENT", "CONDITIONING", "STRING"],
    ),
}  # fmt: skip


def _files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _shipped():
    """Every Python file of the published package; test_package.py holds the package to that list."""
    top = [ROOT / name for name in PUBLISHED]
    return sorted([path for path in top if path.suffix == ".py"] + _files(*(path for path in top if path.is_dir())))


def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imports(path):
    """(level, dotted module) of every import in a file, those inside functions too."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
            # `from comfy import weight_adapter` imports comfy.weight_adapter.
            yield from ((node.level, f"{node.module}.{alias.name}") for alias in node.names if node.level == 0)


def _calls(path):
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _where(path):
    return path.relative_to(ROOT).as_posix()


def test_the_published_package_is_what_we_think():
    shipped = {_where(path) for path in _shipped()}
    expected = {"__init__.py", "install.py", "nodes/train.py", "nodes/host/patching.py", "sara_core/delta/delta.py"}
    assert expected <= shipped
    assert {name.split("/")[0] for name in shipped} == {"__init__.py", "install.py", "nodes", "sara_core"}


@pytest.mark.parametrize("path", _files("sara_core"), ids=_where)
def test_the_library_knows_no_host(path):
    allowed = LIBRARIES | sys.stdlib_module_names
    if _where(path) == "sara_core/pipelines/prepare.py":
        allowed |= {"diffusers"}
    if _where(path) in ("sara_core/data/pictures.py", "sara_core/data/colours.py", "sara_core/charts/drawing.py"):
        allowed |= {"PIL"}
    if _where(path) in ("sara_core/backward/triton_gradient.py", "sara_core/backward/triton_elements.py"):
        allowed |= {"triton"}
    if _where(path) == "sara_core/models/gguf_file.py":
        allowed |= {"gguf"}
    depth = len(path.relative_to(ROOT).parts) - 1
    for level, module in _imports(path):
        assert level or module.split(".")[0] in allowed, f"imports {module}"
        assert level <= depth, "a relative import leaves sara_core"


@pytest.mark.parametrize("path", _files("sara_core", "nodes") + [ROOT / "__init__.py"], ids=_where)
def test_own_modules_are_imported_relatively(path):
    """The folder's name is not ours to know, and in a WebUI modules are cached globally."""
    absolute = {module.split(".")[0] for level, module in _imports(path) if level == 0}
    assert not absolute & OWN_PACKAGES


@pytest.mark.parametrize("path", [path for path in _files("nodes") if "host" not in path.parts], ids=_where)
def test_only_nodes_host_knows_the_hosts_insides(path):
    host_modules = ("comfy", "comfy_", "execution", "server", "nodes", "latent_preview", "app", "folder_paths")
    for level, module in _imports(path):
        if level == 0 and module.startswith(host_modules):
            prefixes = {module.rsplit(".", i)[0] for i in range(module.count(".") + 1)}
            assert prefixes & HOST_INTERFACE, f"imports {module}"


@pytest.mark.parametrize("path", _shipped() + _files("sara_webui", "scripts"), ids=_where)
def test_nothing_dangerous_is_shipped(path):
    for level, module in _imports(path):
        is_allowed = module in ALLOWED.get(_where(path), ())
        assert level or is_allowed or module.split(".")[0] not in DANGEROUS_MODULES, f"imports {module}"
    for name, call in _calls(path):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in DANGEROUS_CALLS), f"calls {name}"
        if name == "torch.load":
            safe = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert safe.get("weights_only") == "True", "torch.load without weights_only=True runs what a file says"


@pytest.mark.parametrize("path", _files("sara_webui"), ids=_where)
def test_only_modules_of_a_webui_know_its_insides(path):
    absolute = {module.split(".")[0] for level, module in _imports(path) if level == 0}
    about_webuis = {
        "a1111", "forge", "forge_kin", "older_forge", "sdnext", "hosts", "kin", "page", "start"
    } & {path.parent.name, path.stem}  # fmt: skip
    assert not absolute & {"modules", "backend", "ldm_patched"} or about_webuis
    assert "sara_webui" not in absolute, "inside the package imports are relative"


@pytest.mark.parametrize("path", _files("sara_core", "nodes", "sara_webui"), ids=_where)
def test_nodes_and_library_never_print(path):
    """The command line in __main__.py is the library's one place that talks."""
    if path.name != "__main__.py":
        assert "print" not in [name for name, _ in _calls(path)]


@pytest.mark.parametrize("path", _files("sara_core", "nodes", "sara_webui", "devtools", "demo", "tests"), ids=_where)
def test_a_file_is_readable_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_node_ids_inputs_and_outputs_are_for_ever(comfy):
    classes = comfy.nodes.NODE_CLASS_MAPPINGS
    where = "custom_nodes.comfyui-sara"
    own = {name: c for name, c in classes.items() if getattr(c, "RELATIVE_PYTHON_MODULE", None) == where}
    required = {name: list(c.INPUT_TYPES()["required"]) for name, c in own.items()}
    assert required == {name: inputs for name, (inputs, _) in NODES.items()}
    assert {name: list(c.RETURN_TYPES) for name, c in own.items()} == {name: out for name, (_, out) in NODES.items()}
    assert list(own["SaRABake"].INPUT_TYPES()["optional"]) == ["precision"]
    assert list(own["SaRALoader"].INPUT_TYPES()["optional"]) == ["model", "clip", "strength_clip", "more"]
    assert list(own["SaRAApply"].INPUT_TYPES()["optional"]) == ["clip", "strength_clip"]
    assert list(own["SaRATrainOptions"].INPUT_TYPES()["optional"]) == [
        "unconditional", "noise_range", "noise_from", "noise_to", "train", "keep_last_snapshot",
        "held_out",
    ]  # fmt: skip
    assert list(own["SaRAConvert"].INPUT_TYPES()["optional"]) == ["delta", "reading", "reader"]
    assert list(own["SaRASave"].INPUT_TYPES()["optional"]) == [
        "title", "author", "trigger_phrase", "tags", "description", "thumbnail", "model", "license",
    ]  # fmt: skip
    assert list(own["SaRADataset"].INPUT_TYPES()["optional"]) == ["vae", "clip"]
    assert list(own["SaRATrain"].INPUT_TYPES()["optional"]) == [
        "layers", "include", "exclude", "adjust_at", "low_rank_weight", "class_latents", "class_positive",
        "prior_weight", "resume", "options", "samples", "clip", "captions", "class_captions",
    ]  # fmt: skip


def test_every_input_and_output_is_explained(comfy):
    for name in NODES:
        schema = comfy.node_class(name).GET_SCHEMA()
        assert schema.description and schema.search_aliases, name
        unexplained = [socket.id for socket in (*schema.inputs, *schema.outputs) if not socket.tooltip]
        assert not unexplained, f"{name}: {unexplained}"


def _install(*options):
    script = ROOT / "install.py"
    return subprocess.run([sys.executable, *options, str(script)], capture_output=True, text=True)


def test_install_says_and_does_nothing_when_nothing_is_missing():
    result = _install()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_install_names_what_is_missing():
    result = _install("-I", "-S")  # without any installed package
    assert result.returncode == 1 and result.stdout.count("\n") == 1
    for name in LIBRARIES:
        assert f"{name} is not installed" in result.stdout


def test_a_pack_that_cannot_be_imported_says_what_is_missing():
    """In place of the host's modules nothing; without installed packages, as where they are missing."""
    script = f"import sys\nsys.path.insert(0, {str(ROOT.parent)!r})\n__import__({ROOT.name!r})"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: SaRA: ") and "torch is not installed" in last


def test_install_imports_nothing_heavy():
    script = f"import runpy, sys\nrunpy.run_path({str(ROOT / 'install.py')!r})\nprint(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "importlib.metadata" in result.stdout
    assert not LIBRARIES & set(ast.literal_eval(result.stdout))
