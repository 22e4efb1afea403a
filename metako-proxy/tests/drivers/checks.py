"""What the scripts of Python drivers have in common: where to connect, and how a check tells its result.

A check is a function (or coroutine function) decorated with `@check`; its name is the check's. One line of JSON is
printed for each: {"check": name, "ok": bool, "detail": text}.
"""

import asyncio
import inspect
import json
import os
import sys
import threading
import time
import traceback

HOST = "127.0.0.1"
PORT = int(os.environ["METAKO_TEST_PORT"])
# The servers themselves: for watching what goes on, never for what is checked. The primary is the first.
DIRECT_PORTS = [int(port) for port in os.environ["METAKO_TEST_DIRECT_PORTS"].split(",")]
USER = os.environ["METAKO_TEST_USER"]
PASSWORD = os.environ["METAKO_TEST_PASSWORD"]
DATABASE = os.environ["METAKO_TEST_DATABASE"]
# direct, session, transaction or split
MODE = os.environ["METAKO_TEST_MODE"]
# The certificate of the authority that made the proxy's certificate, and of another one; empty without TLS.
CA = os.environ["METAKO_TEST_CA"]
OTHER_CA = os.environ["METAKO_TEST_OTHER_CA"]
# Far above what anything here takes.
LIMIT = 60

_checks = []


class Mismatch(Exception):
    """Something else came than was expected."""


def check(function):
    """Marks a function as a check."""
    _checks.append(function)
    return function


def own_server(function):
    """Marks a check of what a server does for one client only: not where servers are shared."""
    if MODE in ("direct", "session"):
        _checks.append(function)
    return function


def with_tls(function):
    """Marks a check that needs TLS."""
    if CA:
        _checks.append(function)
    return function


def expect(got, wanted, what=""):
    """Fails the check unless both are equal."""
    if got != wanted:
        raise Mismatch(f"{what or 'value'}: expected {wanted!r}, got {got!r}")


class raises:
    """A block that must fail with that SQLSTATE; the error is in `.error`."""

    def __init__(self, *states, kind=Exception):
        self.states, self.kind, self.error = states, kind, None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if error is None:
            raise Mismatch(f"expected an error {self.states}, got none")
        if not isinstance(error, self.kind) or isinstance(error, (Mismatch, TimeoutError)):
            return False
        self.error = error
        state = getattr(error, "sqlstate", None)
        if self.states and state not in self.states:
            raise Mismatch(f"expected SQLSTATE {self.states}, got {state}: {error}") from error
        return True


def eventually(what, ask):
    """Asks until the answer is true; fails after LIMIT seconds."""
    end = time.monotonic() + LIMIT
    while not ask():
        if time.monotonic() > end:
            raise Mismatch(f"never happened: {what}")
        time.sleep(0.01)


def background(work):
    """Runs `work` on a thread; `.join()` waits for its end and raises its error."""
    return _Background(work)


class _Background(threading.Thread):
    def __init__(self, work):
        super().__init__(daemon=True)
        self._work, self._error = work, None
        self.start()

    def run(self):
        try:
            self._work()
        except BaseException as error:  # raised again by join()
            self._error = error

    def join(self, timeout=LIMIT):
        super().join(timeout)
        if self.is_alive():
            raise Mismatch("the other thread did not end")
        if self._error is not None:
            raise self._error


def main():
    """Runs all checks, or those named on the command line."""
    wanted = sys.argv[1:]
    for function in _checks:
        if wanted and function.__name__ not in wanted:
            continue
        ok, detail = True, ""
        try:
            if inspect.iscoroutinefunction(function):
                asyncio.run(asyncio.wait_for(function(), LIMIT))
            else:
                background(function).join()
        except BaseException as error:
            ok, detail = False, _explain(error)
        print(json.dumps({"check": function.__name__, "ok": ok, "detail": detail}), flush=True)
    # Threads and connections of checks that hang must not keep the process.
    sys.stdout.flush()
    os._exit(0)


def _explain(error):
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if "/tests/drivers/" in frame.filename:
            place = f"{os.path.basename(frame.filename)}:{frame.lineno}: {frame.line}"
    state = getattr(error, "sqlstate", None)
    state = f" [{state}]" if state else ""
    return f"{type(error).__name__}{state}: {str(error).strip()} (at {place})"
