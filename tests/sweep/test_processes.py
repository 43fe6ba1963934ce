"""Commands: their output, their errors and the end of all their processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from nnunet_unifiedloss._support.processes import console_script, ending, first_error, running

CHILD_WITH_WORKER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(worker.pid, flush=True)
{end}
"""


def run_python(code: str, log: Path) -> int:
    """Run a command as the runner does, and return its exit status."""
    environment = {**os.environ, "A_SETTING": "set"}
    with (
        log.open("w") as output,
        running([sys.executable, "-c", code], environment, output.fileno()) as process,
    ):
        process.wait(60)
    return process.returncode


def ends(process: int) -> bool:
    """Return True if the process ends within seconds."""
    state = Path(f"/proc/{process}/stat")
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
                time.sleep(0.05)
                continue
        return True
    return False


@pytest.fixture
def default_sigint():
    """Ctrl-C interrupts, also if the tests run in the background, where a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_output_and_settings_reach_the_log(tmp_path):
    log = tmp_path / "some.log"
    assert run_python("import os, sys; print(os.environ['A_SETTING']); sys.exit(3)", log) == 3
    assert log.read_text() == "set\n"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SIGKILL", "was killed, as happens when memory runs out"),
        ("SIGTERM", "was ended by the signal SIGTERM"),
    ],
)
def test_commands_ended_by_a_signal_are_explained(tmp_path, name, text):
    code = f"import os, signal; os.kill(os.getpid(), signal.{name})"
    assert ending(run_python(code, tmp_path / "some.log")) == text


def test_first_error_is_named(tmp_path):
    log = tmp_path / "some.log"
    code = (
        "import traceback\n"
        "try: {}['the cause']\n"
        "except KeyError: traceback.print_exc()\n"
        "raise RuntimeError('workers are no longer alive')"
    )
    assert run_python(code, log) == 1
    assert first_error(log.read_text()) == "KeyError: 'the cause'"


def test_absent_command_is_explained():
    with pytest.raises(RuntimeError, match=r"nnUNetv2_none is neither in .* pip install nnunetv2"):
        console_script("nnUNetv2_none")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_the_command_and_its_workers(tmp_path, number, default_sigint):
    log = tmp_path / "some.log"

    def interrupt() -> None:
        while not (log.exists() and log.read_text().endswith("\n")):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_python(CHILD_WITH_WORKER.format(end="time.sleep(60)"), log)
    assert ends(int(log.read_text()))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_workers_of_a_command_that_died_are_ended(tmp_path):
    log = tmp_path / "some.log"
    assert run_python(CHILD_WITH_WORKER.format(end="import os; os._exit(1)"), log) == 1
    assert ends(int(log.read_text()))
