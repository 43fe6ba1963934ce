"""The structure of the package: imports, start-up time, public names, size of the code."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nnunet_unifiedloss
from nnunet_unifiedloss import losses

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
imports = importlib.import_module("imports")  # tools/imports.py
del sys.path[0]

PACKAGE = "nnunet_unifiedloss"
HEAVY = {"torch", "nnunetv2", "matplotlib", "pandas", "scipy", "rich", "SimpleITK", "numpy"}


@functools.cache
def loaded_by(source: str) -> set[str]:
    """All modules that a new Python process has loaded after running some lines."""
    report = "import json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{source}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def predicted(module: str) -> set[str]:
    """The modules of this package that importing one of them loads, according to the source."""
    at_once = [entry for entry in imports.imports() if not entry.deferred]
    found, new = set(), {module}
    while new:
        name = new.pop()
        found.add(name)
        new |= {name.rpartition(".")[0]}  # the package that it is in
        new |= {entry.target for entry in at_once if entry.module == name}
        new = {name for name in new if name.startswith(PACKAGE)} - found
    return found


def test_there_are_no_circular_imports():
    targets: dict[str, set[str]] = {}
    for entry in imports.imports():
        if entry.target.startswith(PACKAGE):
            targets.setdefault(entry.module, set()).add(entry.target)
    order = list(TopologicalSorter(targets).static_order())  # raises CycleError
    assert f"{PACKAGE}.trainer" in order


def test_circular_imports_are_found(tmp_path, monkeypatch):
    for name, other in (("a", "b"), ("b", "a")):
        text = f"def run():\n    from {PACKAGE}.{other} import thing\n"
        (tmp_path / f"{name}.py").write_text(text)
    found = {f"{PACKAGE}.{name}": tmp_path / f"{name}.py" for name in "ab"}
    monkeypatch.setattr(imports, "modules", lambda: found)
    with pytest.raises(CycleError):
        test_there_are_no_circular_imports()


@pytest.mark.parametrize(
    "module",
    [
        *("cli", "sweep", "training.install", "results.trainings", "results.validation"),
        *("compare.measurement", "_support.processes"),
    ],
)
def test_imports_in_the_source_match_those_at_run_time(module):
    name = f"{PACKAGE}.{module}"
    loaded = {other for other in loaded_by(f"import {name}") if other.startswith(PACKAGE)}
    assert loaded == predicted(name)


def test_losses_import_neither_nnunet_nor_other_subpackages():
    of_losses = [e for e in imports.imports() if imports.subpackage(e.module) == "losses"]
    others = {entry.target.partition(".")[0] for entry in of_losses} - sys.stdlib_module_names
    assert others <= {PACKAGE, "torch", "numpy", "typing_extensions"}
    ours = {entry.target for entry in of_losses if entry.target.startswith(PACKAGE)}
    assert {imports.subpackage(target) for target in ours} == {"losses"}
    loaded = loaded_by(f"import {PACKAGE}.losses")
    assert not loaded & {"nnunetv2", "batchgenerators", "matplotlib", "pandas"}


def test_help_imports_no_large_library():
    """Neither the help of the program nor that of any command imports torch or similar."""
    source = """
import contextlib, io
from nnunet_unifiedloss.cli import main
from nnunet_unifiedloss.cli.program import COMMANDS
for words in (["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(words)
"""
    assert not loaded_by(source) & HEAVY


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("results.trainings", HEAVY),
        ("results.validation", HEAVY),
        ("results.plans", HEAVY),
        ("training.install", HEAVY),
        ("sweep", HEAVY),
        ("compare.measurement", {"torch", "nnunetv2", "pandas", "matplotlib"}),
        ("training.probe", HEAVY),
    ],
)
def test_light_modules_import_no_large_library(module, without):
    assert not loaded_by(f"import {PACKAGE}.{module}") & without


def test_every_package_is_shipped():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    _, _, setuptools = project.partition("[tool.setuptools]")
    listed, _, _ = setuptools.partition("]")
    packages = {name for name, path in imports.modules().items() if path.name == "__init__.py"}
    assert set(re.findall(r'"([\w.]+)"', listed)) == packages
    assert (Path(nnunet_unifiedloss.__file__).parent / "py.typed").is_file()


def public_names() -> dict[str, str]:
    """The table of docs/api.md: module → the cell of its names."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    return dict(re.findall(rf"^\| `({PACKAGE}[\w.]+)` \| (.*) \|$", page, re.MULTILINE))


@pytest.mark.parametrize("name", public_names())
def test_the_public_names_are_documented(name):
    module, cell = importlib.import_module(name), public_names()[name]
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)
    listed = set(re.findall(r"`(\w+)`", cell))
    if module is losses:
        listed |= set(losses.SegmentationLoss.registry)
        listed -= {"PowerCrossEntropyLoss"}  # registered by the test of the documentation
    assert listed == set(module.__all__)


def test_the_page_of_public_names_is_not_empty():
    assert {f"{PACKAGE}.losses", f"{PACKAGE}.compare.comparison"} <= set(public_names())


def trees() -> dict[str, ast.Module]:
    """The syntax tree of each module of the package."""
    paths = imports.modules().items()
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths}


def functions() -> Iterator[tuple[int, str]]:
    """Length and name of each function; the length excludes signature and docstring."""
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1 if ast.get_docstring(node) is not None else 0 :]
                length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                yield length, f"{module}.{node.name}"


def test_the_losses_are_a_small_package():
    paths = (ROOT / PACKAGE / "losses").glob("*.py")
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths) <= 3000


def test_two_backward_passes_are_written_by_hand():
    """All other gradients are autograd's."""
    written = {
        node.name
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("Function") for base in node.bases)
    }
    assert written == {"SoftmaxSplit", "_SumOverRanks"}


def test_functions_are_short():
    """The median is at most 12 lines, and 90 % have at most 30 lines."""
    found = sorted(functions(), reverse=True)
    longest = "\n".join(f"{length} {name}" for length, name in found if length > 30)
    lengths = [length for length, _ in found]
    assert statistics.median(lengths) <= 12
    assert sum(length <= 30 for length in lengths) >= 0.9 * len(lengths), longest
