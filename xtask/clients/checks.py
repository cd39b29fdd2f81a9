"""Runs the test functions of a script and prints how many passed."""

import pathlib
import sys
import time
import traceback

# Most characters of an error that are shown; a browser's errors carry whole pages.
MESSAGE_CHARS = 1000


def run(tests):
    """Calls each (function, arguments) pair and exits with 0 if none raised."""
    passed, failed = 0, 0
    for test, arguments in tests:
        name = test.__name__.removeprefix("test_").replace("_", " ")
        started = time.monotonic()
        try:
            test(*arguments)
        except Exception as error:
            failed += 1
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:MESSAGE_CHARS]}")
            print("".join(traceback.format_tb(error.__traceback__, limit=-3)), end="", flush=True)
        else:
            passed += 1
            print(f"ok {name} ({time.monotonic() - started:.1f} s)", flush=True)
    # The name keeps this line apart from the one that closes the whole gate.
    print(f"{pathlib.Path(sys.argv[0]).stem}: {passed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)


def expect_equal(got, expected, what):
    """Raises with both values unless they are equal."""
    if got != expected:
        raise AssertionError(f"{what} is {got!r}, expected {expected!r}")


def expect(condition, what):
    """Raises unless the condition holds."""
    if not condition:
        raise AssertionError(what)


def tests_of(namespace):
    """The functions of a module whose names begin with `test_`, in the order they are written."""
    return [value for name, value in namespace.items() if name.startswith("test_") and callable(value)]
