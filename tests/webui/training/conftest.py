"""What the fakes of several WebUIs are compared with."""

import pytest

from tests.webui.training.beside_plain import entries_without_a_host


@pytest.fixture(scope="session")
def wanted(tmp_path_factory):
    return entries_without_a_host(tmp_path_factory.mktemp("alone"))
