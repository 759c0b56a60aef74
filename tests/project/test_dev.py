"""What `python dev.py test`, and with it .ci/run, runs and reports."""

import pytest

import dev

RUFF, TESTS, BITS = "ruff", "the tests with", "the tests of bits with ATEN_CPU_CAPABILITY=default"


@pytest.fixture
def run(monkeypatch):
    """Calls run_tests, with what ruff, pytest and pytest for bits end with; gives its status and what was run."""

    def run_tests(arguments=(), ruff=0, tests=0, bits=0):
        ran = []

        def instead(host, arguments, settings={}):
            what = RUFF if "ruff" in arguments else BITS if "bits" in arguments else TESTS
            ran.append((what, arguments, settings))
            return {RUFF: ruff, TESTS: tests, BITS: bits}[what]

        monkeypatch.setattr(dev, "run", instead)
        return dev.run_tests(list(arguments)), ran

    monkeypatch.setattr(dev, "prepare_host", lambda: dev.Host(None, None, is_users_own=True))
    return run_tests


def test_all_tests_run_and_those_of_bits_again_as_on_another_processor(run, capfd):
    status, ran = run()
    assert status == 0 and not capfd.readouterr().err
    assert [what for what, _, _ in ran] == [RUFF, TESTS, BITS]
    assert ran[1][1:] == (["-m", "pytest"], {}) and ran[2][2] == dev.OLD_PROCESSOR


def test_with_arguments_only_what_they_say_runs(run):
    status, ran = run(["tests/core/test_x.py"])
    assert status == 0 and [what for what, _, _ in ran] == [RUFF, TESTS] and ran[1][1][-1] == "tests/core/test_x.py"


@pytest.mark.parametrize("failing, named", [("ruff", RUFF), ("tests", TESTS), ("bits", BITS)])
def test_one_failure_is_the_whole_result_and_is_named(run, capfd, failing, named):
    status, ran = run(**{failing: 1})
    assert status == 1 and len(ran) == 3
    assert capfd.readouterr().err.startswith(f"failed: {named}")


def test_after_an_interrupt_nothing_more_runs(run):
    status, ran = run(tests=2)
    assert status == 2 and [what for what, _, _ in ran] == [RUFF, TESTS]
