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
    assert ran[1][1] == dev.PYTEST + dev.IN_PARALLEL and ran[2][2].items() >= dev.OLD_PROCESSOR.items()
    assert not dev.OLD_PROCESSOR.keys() & ran[1][2].keys() and not dev.ONE_THREAD.keys() & ran[2][2].keys()


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


def test_what_the_tests_took_is_said_of_both_runs_together(run, capfd, monkeypatch):
    def instead(host, arguments, settings={}):
        if "pytest" in arguments:
            with open(settings[dev.TIMES], "a") as times:
                times.write('{"test": "tests/core/test_a.py::test", "seconds": 60, "processor": 30, "at_once": 1}\n')
        return 0

    run()
    monkeypatch.setattr(dev, "run", instead)
    assert dev.run_tests([]) == 0
    assert "core          2.0" in capfd.readouterr().out
