"""Leaves out every barrier, shuffle and wait of an op's kernels, one at a time: do the op's tests notice?

    PYTHONPATH=.:tests python -m kernels.omissions upfirdn2d

Ends with status 1 when the tests pass without one of them: then it is superfluous, or a test is missing. What only the
device can tell is excused by a comment on its line in the kernel: // not observable: <why>.
"""

import os
import pathlib
import signal
import sys
import time

import pytest

from . import host

OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
SECONDS = 300  # a kernel that hangs is noticed, too


class Recorder:
    """A pytest plugin: the tests that execute each operation, with the seconds that they take."""

    def __init__(self, module):
        self.module = module
        self.tests = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self.module.forget_operations()
        start = time.perf_counter()
        result = yield
        for operation in self.module.operations():
            self.tests.setdefault(operation, {})[item.nodeid] = time.perf_counter() - start
        return result


def is_noticed(module, operation, tests):
    """Whether one of the tests, the quick ones first, fails without the operation."""
    child = os.fork()  # of its own, since the broken kernel may end the process
    if child == 0:
        signal.alarm(SECONDS)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        module.omit(operation)
        os._exit(pytest.main([*OPTIONS, *sorted(tests, key=tests.get)]))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > pytest.ExitCode.TESTS_FAILED:
        raise SystemExit(f"{operation}: pytest ended with status {status}")
    return status != pytest.ExitCode.OK


def is_excused(operation):
    """Whether the kernel's line says that the simulator cannot show what the operation is good for."""
    file, line = operation.split()[1].split(":")
    (source,) = (host.ROOT / "csrc").rglob(file)
    return "// not observable: " in source.read_text().splitlines()[int(line) - 1]


def main(op):
    os.chdir(host.ROOT)  # what pytest's names of tests start from
    module = host.load(op)
    recorder = Recorder(module)
    tests = pathlib.Path(__file__).with_name(f"test_{op}.py")
    if pytest.main([*OPTIONS, str(tests)], plugins=[recorder]) != pytest.ExitCode.OK:
        raise SystemExit(f"{tests} fails with nothing left out")
    if not module.launches():
        raise SystemExit(f"{tests} has run no kernel of _host_{op}.so")
    survivors = 0
    for operation, executed_by in sorted(recorder.tests.items()):
        if is_noticed(module, operation, executed_by):
            verdict = "noticed"
        elif is_excused(operation):
            verdict = "not observable"
        else:
            verdict = "NOT NOTICED"
            survivors += 1
        print(verdict, operation, flush=True)
    raise SystemExit(f"{survivors} omissions are not noticed" if survivors else 0)


if __name__ == "__main__":
    main(sys.argv[1])
