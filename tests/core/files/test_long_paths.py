"""A path that is too long for Windows is said to be that, and not to be missing."""

import pytest

from sara_core.delta import SparseDelta
from sara_core.errors import DeltaError
from sara_core.files import container, long_paths


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(long_paths, "IS_WINDOWS", True)


def long_path(folder):
    return folder.joinpath(*["a" * 100] * 3, "x.safetensors")


def test_what_is_not_found_may_be_too_long(windows, tmp_path):
    with pytest.raises(DeltaError, match=r"cannot be found: its path has \d+ characters.*shorter path"):
        with container.opened(long_path(tmp_path)):
            pass
    with pytest.raises(DeltaError, match=r"could not be saved: its path has \d+ characters.*shorter path"):
        SparseDelta({}).save(long_path(tmp_path))


def test_a_name_that_is_too_long_only_while_it_is_written(windows, tmp_path):
    """What is written is called a little longer until it is whole."""
    name = "x" * (long_paths.LONGEST - len(str(tmp_path)) - len("/nowhere/") - len(".safetensors"))
    path = tmp_path / "nowhere" / f"{name}.safetensors"
    assert len(str(path)) == long_paths.LONGEST and long_paths.remedy(path) is None
    with pytest.raises(DeltaError, match="shorter path"):
        SparseDelta({}).save(path)


def test_a_short_path_and_other_systems_hear_that_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(long_paths, "IS_WINDOWS", False)
    for path in (long_path(tmp_path), tmp_path / "x.safetensors"):
        with pytest.raises(DeltaError, match="does not exist"):
            with container.opened(path):
                pass
    monkeypatch.setattr(long_paths, "IS_WINDOWS", True)
    with pytest.raises(DeltaError, match="the folder does not exist"):
        SparseDelta({}).save(tmp_path / "nowhere" / "x.safetensors")
