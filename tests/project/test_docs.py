"""What the documentation names exists: files, links, measurements, commands and their options, modules, nodes."""

import argparse
import importlib.util
import json
import re
from pathlib import Path

import pytest

from devtools.architecture_picture import PICTURE, picture
from devtools.packer import tracked_files
from sara_core.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(ROOT / name for name in tracked_files() if name.endswith(".md"))
# Pages that name files of this repository in backticks; others name mostly those of a user.
NAMING_FILES = ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/method.md", "docs/performance.md"]
# The beginnings of paths on a user's own disk.
USERS_OWN = {"output", "models", "input", "ComfyUI", "~", "OUT"}
ENDINGS = (".py", ".md", ".toml", ".json", ".svg", ".sh")
README_LINES = 120
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def _where(path):
    return path.relative_to(ROOT).as_posix()


def _text(path):
    return path.read_text(encoding="utf-8")


def _without_code_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def named_files(text):
    """What is in backticks and is the name of a file or folder of the repository."""
    for quoted in re.findall(r"`([^`\n]+)`", _without_code_blocks(text)):
        is_path = re.fullmatch(r"[\w./~-]+", quoted) and ("/" in quoted or quoted.endswith(ENDINGS))
        if is_path and quoted.split("/")[0] not in USERS_OWN:
            yield quoted


def headings(text):
    """The anchors of a page's headings, as the pages' host makes them: lower case, hyphens, nothing but words."""
    for title in re.findall(r"^#+ (.+)$", _without_code_blocks(text), re.M):
        yield re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def link_targets(text):
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code_blocks(text)):
        if not re.match(r"[a-z]+:", target):
            yield target


@pytest.mark.parametrize("page", NAMING_FILES)
def test_every_file_that_is_named_exists(page):
    missing = [name for name in named_files(_text(ROOT / page)) if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=_where)
def test_every_link_leads_somewhere(page):
    for target in link_targets(_text(page)):
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), target
        assert not anchor or anchor in headings(_text(file)), target


@pytest.mark.parametrize("page", PAGES, ids=_where)
def test_every_measurement_and_program_exists(page):
    text = _text(page)
    for name in re.findall(r"dev\.py bench (\w+)", text):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file(), name
    for module in re.findall(r"python -m ((?:benchmarks|demo|devtools)[\w.]*)", text):
        assert importlib.util.find_spec(module), module


def _options(command):
    parser = argparse.ArgumentParser()
    COMMANDS[command].add_arguments(parser)
    return set(OPTION.findall(parser.format_help()))


@pytest.mark.parametrize("page", PAGES, ids=_where)
def test_every_command_has_the_options_that_are_named_with_it(page):
    for line in _text(page).splitlines():
        for command, rest in re.findall(r"python -m sara_core (\w+)([^`]*)", line):
            assert command in COMMANDS, line
            assert set(OPTION.findall(rest)) <= _options(command), line


def test_the_page_on_use_names_every_command_and_no_option_that_is_none():
    text = _text(ROOT / "docs" / "use.md")
    assert set(re.findall(r"python -m sara_core (\w+)", text)) == set(COMMANDS)
    known = set().union(*map(_options, COMMANDS)) | {"--nproc-per-node"}  # torchrun's
    assert set(OPTION.findall(text)) <= known


def test_the_page_on_upgrading_has_every_moved_module_where_it_is():
    rows = re.findall(r"^\| (`sara_core.+?) \| (.+?) \|$", _text(ROOT / "docs" / "upgrading.md"), re.M)
    assert rows
    for old, new in rows:
        for module in re.findall(r"`(sara_core[\w.]*)`", new):
            assert importlib.util.find_spec(module), module
        path = old.strip("`").replace(".", "/")
        assert not (ROOT / f"{path.split('`')[0]}.py").exists(), old


def test_the_first_style_goes_by_the_real_templates_and_nodes():
    text = _text(ROOT / "docs" / "first-style.md")
    templates = [json.loads(_text(path)) for path in (ROOT / "example_workflows").glob("*.json")]
    titles = {node["title"] for template in templates for node in template["nodes"] if "title" in node}
    pages = {_text(path).splitlines()[0].removeprefix("# ") for path in (ROOT / "js" / "docs").glob("*.md")}
    named = set(re.findall(r"\*\*(SaRA [\w ]+)\*\*", text))
    assert named and named <= pages
    assert {"Picture size", "Prompt", "Trigger word", "What to draw", "Its kind", "How many others"} <= titles
    for name in ("Train a style", "Learn a subject", "Use a delta"):
        assert f"**{name}**" in text and list((ROOT / "example_workflows").glob(f"{name}*.json"))
    explained = set(re.findall(r"`(\w+)`", "\n".join(map(_text, (ROOT / "js" / "docs").glob("*.md")))))
    of_core = {"width", "height", "input"}
    words = set(re.findall(r"`([a-z_]+)`", text))
    assert words <= explained | of_core | {"my_style"}


def test_the_readme_is_short_and_has_the_two_commands_near_its_top():
    lines = _text(ROOT / "README.md").splitlines()
    assert len(lines) <= README_LINES
    for command in ("demo", "test"):
        assert any(line.startswith(f"python dev.py {command}") for line in lines[:25]), command


def test_the_changelog_begins_with_the_version_of_the_package():
    (version,) = re.findall(r'^version = "(.+)"', _text(ROOT / "pyproject.toml"), re.M)
    assert re.search(r"^## \[(.+?)\]", _text(ROOT / "CHANGELOG.md"), re.M)[1] == version


def test_the_picture_of_the_packages_is_the_one_that_is_drawn_of_them():
    """Run `python -m devtools.architecture_picture` after moving one."""
    assert PICTURE.read_text(encoding="utf-8") == picture()


def test_what_is_wrong_would_be_seen():
    """The rules themselves: what they read out of a page."""
    text = "See `sara_core/delta/delta.py`, `nodes/`, `output/sara/x.safetensors`, `a.b` and\n```\n`x/y.py`\n```\n"
    assert list(named_files(text)) == ["sara_core/delta/delta.py", "nodes/"]
    assert list(headings("# What is exact\n## In & out: 1\n")) == ["what-is-exact", "in--out-1"]
    assert list(link_targets("[a](b.md#c) [d](https://e) ![f](g.png)")) == ["b.md#c", "g.png"]
