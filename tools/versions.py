"""Run the tests that depend on the versions of other packages, each time in a fresh environment.

    python tools/versions.py lowest onnx newest --python python3.10 python3.13

``lowest`` installs the lower bounds in pyproject.toml, ``onnx`` the same with the extra ``onnx``,
``newest`` the versions that pip picks, and ``torch-2.11`` the same with PyTorch 2.11, whose
compiler has a bug of its own. Each environment appends a row to the table; an environment that has
a row is not measured again. Its log lists the installed packages and the failures.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("nnunetv2", "torch", "numpy", "scipy", "pandas")
# Tests of what depends on other packages: names and trainers (nnU-Net), values and compilation
# (torch), statistics and reports (scipy, pandas, matplotlib, …), jobs (submitit), and nnU-Net's own
# commands on real data, with a training for each label scenario.
TESTS = [f"training/test_{name}.py" for name in ("names", "trainer", "doctor", "nnunet")]
TESTS += [f"losses/test_{name}.py" for name in ("reference", "execution", "lovasz")]
TESTS += ["compare/test_statistics.py", "compare/test_report.py", "sweep/test_slurm.py"]
GRAPHS = ["export/test_onnx.py"]
SETS = {
    "lowest": TESTS,
    "onnx": GRAPHS,
    "newest": [*TESTS, *GRAPHS],
    "torch-2.11": ["losses/test_execution.py", "losses/test_lovasz.py"],
}

PASSED = re.compile(r"\d+ passed(, \d+ (skipped|deselected|warnings?))*")


def project() -> dict[str, Any]:
    """The table ``project`` of pyproject.toml."""
    import tomllib  # Python 3.11; only the environments may have an older Python

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text)["project"])


def requirements(name: str) -> tuple[list[str], list[str]]:
    """The requirements and constraints that pip gets for a set."""
    extras = project()["optional-dependencies"]
    tools = [line for line in extras["test"] if line.startswith(("pytest", "hypothesis"))]
    if name == "newest":
        return [".[onnx]", *tools], []
    if name == "torch-2.11":
        return [".", *tools], ["torch==2.11.0"]
    lines = [*project()["dependencies"], *tools, *(extras["onnx"] if name == "onnx" else [])]
    bounds = dict(line.split(">=") for line in lines)  # an extra raises bounds of the package
    package = ".[onnx]" if name == "onnx" else "."
    return [package, *tools], [f"{other}=={bound}" for other, bound in bounds.items()]


class Environment:
    """A virtual environment with the package, and the log of its commands.

    Args:
        folder: Its folder; anything in it is removed.
        timeout: Seconds that each command may take.
    """

    def __init__(self, folder: Path, timeout: float) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.venv, self.log, self.timeout = folder / "venv", folder / "log.txt", timeout
        self.python = self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(self, *command: str | Path) -> str | None:
        """Run a command and end all its processes; return an error message or None."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "nnUNet_extTrainer")}
        with self.log.open("a", encoding="utf-8") as log:
            print("$", *command, file=log, flush=True)
            process = subprocess.Popen(
                [str(word) for word in command], cwd=ROOT, env=kept,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                return f"ended after {self.timeout:.0f} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return None if status == 0 else f"exit status {status}"

    def install(self, python: str, name: str) -> str | None:
        """Create the environment and install a set; return an error message or None."""
        (package, *tools), constraints = requirements(name)
        file = self.venv.with_name("constraints.txt")
        file.write_text("\n".join(constraints), encoding="utf-8")
        pip = [self.python, "-m", "pip", "--disable-pip-version-check"]
        return (
            self.run(python, "-m", "venv", self.venv)
            or self.run(*pip, "install", "-c", file, "-e", package, *tools)
            or self.run(*pip, "freeze", "--exclude-editable")
        )

    def versions(self) -> dict[str, str]:
        """The versions that the table shows."""
        code = (
            "import sys; from importlib.metadata import version as v; print(*map(v, sys.argv[1:]))"
        )
        command = [self.python, "-c", code, *SHOWN]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return dict(zip(SHOWN, done.stdout.split(), strict=True))

    def test(self, names: list[str]) -> str:
        """Run test files; return pytest's summary."""
        files = [f"tests/{name}" for name in names]
        command = [self.python, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider"]
        problem = self.run(*command, *files)
        log = self.log.read_text(encoding="utf-8")
        counts = re.findall(r"^(?:=+ )?(\d+ \w+(?:, \d+ \w+)*) in \d", log, re.MULTILINE)
        return counts[-1] if counts else f"tests: {problem}"


def python_version(python: str) -> str:
    """The version of an interpreter."""
    command = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def measure(environment: Environment, name: str, python: str) -> dict[str, str]:
    """Create an environment, run the tests in it and remove it; return versions and outcome."""
    versions = dict.fromkeys(SHOWN, "")
    problem = environment.install(python, name)
    if problem is None:
        versions = environment.versions()
    outcome = f"installation: {problem}" if problem else environment.test(SETS[name])
    shutil.rmtree(environment.venv, ignore_errors=True)
    return versions | {"outcome": outcome}


def add_row(table: Path, row: dict[str, str]) -> None:
    """Append a row to the table at the end of a Markdown file; add the heading if needed."""
    text = table.read_text(encoding="utf-8") if table.exists() else ""
    if "| versions |" not in text:
        text += f"| {' | '.join(row)} |\n|{' --- |' * len(row)}\n"
    table.write_text(f"{text}| {' | '.join(row.values())} |\n", encoding="utf-8")


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("sets", nargs="+", choices=SETS, help="the versions to install")
    add("--python", nargs="+", default=[sys.executable], help="interpreters")
    add("--work", type=Path, default=Path("build/versions"), help="for environments and logs")
    add("--table", type=Path, default=Path("build/versions.md"), help="Markdown file to extend")
    add("--timeout", type=float, default=7200, help="seconds that each command may take")
    return parser.parse_args()


def main() -> int:
    """Measure all requested environments without a row; return 1 if one of them failed."""
    arguments, status = options(), 0
    if not os.environ.get("UNIFIEDLOSS_TEST_DATA"):
        sys.exit(
            "set UNIFIEDLOSS_TEST_DATA (see docs/inside.md); without it, trainings are skipped"
        )
    arguments.table.parent.mkdir(parents=True, exist_ok=True)
    for python, name in itertools.product(arguments.python, arguments.sets):
        row = {"versions": name, "Python": python_version(python)}
        if (
            arguments.table.exists()
            and f"| {' | '.join(row.values())} |" in arguments.table.read_text()
        ):
            continue
        folder = arguments.work.resolve() / "-".join(row.values())
        print(f"{name} on Python {row['Python']}: {folder / 'log.txt'}", flush=True)
        row |= measure(Environment(folder, arguments.timeout), name, python)
        print(row["outcome"], flush=True)
        add_row(arguments.table, row)
        status |= not PASSED.fullmatch(row["outcome"])
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
