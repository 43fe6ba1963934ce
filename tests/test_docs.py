"""Everything that the documentation names exists, and generated pages are up to date."""

from __future__ import annotations

import ast
import contextlib
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from packaging.version import Version

from nnunet_unifiedloss import losses
from nnunet_unifiedloss.cli import main
from nnunet_unifiedloss.cli.program import COMMANDS as COMMANDS_OF_OURS
from nnunet_unifiedloss.training import names
from tests.helpers.documentation import (
    ROOT,
    WrongCommandError,
    anchors,
    check,
    check_trainer,
    commands,
    known_flags,
    links,
)
from tests.helpers.results_folder import PLAIN, ResultsFolder, ball

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pages
def test_trainers_and_losses_exist(page):
    text = TEXTS[page]
    for name in set(re.findall(r"\bnnUNetTrainer\w*(?:[.-]\w+)*", text)):
        check_trainer(name.removesuffix("_"))
    if page.name == "numerics.md":  # generated; also names losses of other projects
        return
    for name in set(re.findall(r"\b(?!MONAI|DC_|PowerCross)[A-Z][A-Za-z]+Loss\b", text)):
        others = "DiceCELoss LovaszSoftmaxLoss MemoryEfficientSoftDiceLoss"
        assert hasattr(losses, name) or name in others, name


def test_named_commands_exist():
    known = set(COMMANDS_OF_OURS)
    for text in TEXTS.values():
        assert set(re.findall(r"nnunet-unifiedloss ([a-z]+)", text)) <= known
        assert set(re.findall(r"nnUNetv2_\w+", text)) <= {
            script.name for script in entry_points(group="console_scripts")
        }


COMMANDS = [(page, command) for page in PAGES for command in commands(TEXTS[page])]


@pytest.mark.parametrize(
    "command", [pytest.param(command, id=f"{page.name}: {command}") for page, command in COMMANDS]
)
def test_commands_are_accepted_by_their_programs(command):
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "nnunet-unifiedloss comparison -d 4",
        "nnunet-unifiedloss compare -d 4 --basline nnUNetTrainer",
        "nnunet-unifiedloss compare -d 4 --base nnUNetTrainer",
        "nnunet-unifiedloss compare -d 4 -tr nnUNetTrainer_3epochs",
        "nnunet-unifiedloss compare -d 4 --metrics Dise",
        "nnunet-unifiedloss sweep -d 4 -c 2d",
        "nnunet-unifiedloss sweep -d 4 -c 2d -tr nnUNetTrainer --gpus 0 --launcher slurm",
        "nnUNetv2_train 4 2d -tr nnUNetTrainer",
        "nnUNetv2_train 4 2d 0 -tr nnUNetTrainerUnifedFocal",
        "nnUNetv2_train 4 2d 0 -tr nnUNetTrainerUnifiedFocal --continue",
        "nnUNetv2_trains 4 2d 0",
        "python benchmarks/cost.py",
        "python benchmarks/loss_cost.py --shape two",
        "python tools/numerics.py --check",
        "pytest -m fast",
        "pytest tests/test_nothing.py",
        'pytest tests/compare/test_comparison.py -k "equal_trainers or nothing_at_all"',
        "pip install nnunet-unified-loss",
        "pip install 'nnunet-unifiedloss[cuda]'",
        "frobnicate --all",
    ],
)
def test_wrong_commands_are_rejected(command):
    with pytest.raises(WrongCommandError):
        check(command)


def test_wrong_parameters_are_rejected():
    with pytest.raises(names.TrainerNameError, match=r"unknown part 'detla0\.7'"):
        check("nnUNetv2_train 4 2d 0 -tr nnUNetTrainerUnifiedFocal_detla0.7")


def test_commands_are_found():
    page = """Run `nnunet-unifiedloss list --json` or `nnUNetv2_train … --c`, not `list`.

    ```
    cd x && nnunet-unifiedloss sweep -d 4 \\
        -c 2d  # a comment
    export nnUNet_extTrainer="$(nnunet-unifiedloss path)"
    …
    ```
    ```python
    print("no command")
    ```
    """
    assert list(commands(page)) == [
        "cd x",
        "nnunet-unifiedloss sweep -d 4 -c 2d",
        "nnunet-unifiedloss path",
        "export 'nnUNet_extTrainer=$(nnunet-unifiedloss path)'",
        "nnunet-unifiedloss list --json",
    ]


@pages
def test_flags_in_the_text_exist(page):
    named = re.findall(r"`(--?[A-Za-z]\w*(?:-\w+)*)[ =`]", TEXTS[page])
    of_programs = [check(command) for command in commands(TEXTS[page])]
    assert set(named) <= known_flags().union(*of_programs)


@pages
def test_files_in_the_text_exist(page):
    folders = "benchmarks|docs|examples|nnunet_unifiedloss|tests|tools|trainers"
    for path in re.findall(rf"(?<![\w./-])((?:{folders})/[\w./*-]*\w)", TEXTS[page]):
        assert list(ROOT.glob(path)), path


@pages
def test_links_lead_somewhere(page):
    for target in links(TEXTS[page]):
        address = urlsplit(target)
        if address.scheme:
            assert address.scheme == "https" or address.netloc == "medicaldecathlon.com", target
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc), target
            continue
        path = (page.parent / address.path).resolve() if address.path else page
        assert path.exists(), target
        if address.fragment:
            assert address.fragment in anchors(path.read_text(encoding="utf-8")), target


def test_the_readme_links_every_page():
    linked = {urlsplit(target).path for target in links(TEXTS[ROOT / "README.md"])}
    assert {f"docs/{page.name}" for page in PAGES if page.parent == ROOT / "docs"} <= linked


@pages
def test_lines_are_short(page):
    """At most 120 characters; only rows of tables may be longer."""
    lines = TEXTS[page].splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.lstrip().startswith("|")]


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a Python file."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
            yield docstring


FOLDERS = ["benchmarks", "examples", "tools", "trainers"]
FOLDERS += [
    str(path.relative_to(ROOT))
    for name in ("nnunet_unifiedloss", "tests")
    for path in (ROOT / name, *sorted((ROOT / name).glob("*/")))
    if list(path.glob("*.py"))
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_a_noun_or_an_imperative(folder):
    """And not with a subordinate clause such as "What …" or "Whether …"."""
    found = [
        f"{path.name}: {docstring.splitlines()[0]}"
        for path in sorted((ROOT / folder).glob("*.py"))
        for docstring in docstrings(path)
        if re.match(r"(What|How|Whether|Of)\b", docstring)
    ]
    assert not found, "\n".join(found)


def python_of(page):
    """The only block of Python code on a page."""
    (source,) = re.findall(r"```python\n(.*?)```", TEXTS[ROOT / page], re.DOTALL)
    return source


@pytest.mark.parametrize("page", ["README.md", "docs/regions.md"])
def test_the_python_code_of_losses_runs(page):
    variables = {"logits": torch.zeros(1, 2, 4, 4), "target": torch.zeros(1, 1, 4, 4)}
    exec(python_of(page), variables)
    assert isinstance(variables["loss"], losses.UnifiedFocalLoss)
    assert variables.get("value", torch.zeros(())).ndim == 0


def test_the_python_code_of_comparing_runs(tmp_path, monkeypatch, capsys):
    results = ResultsFolder(tmp_path, PLAIN)
    reference = ball((8, 12, 12), (4, 6, 6), 3).astype(np.uint8)
    results.add_cases({f"case_{fold}": reference for fold in range(5)})
    for trainer in ("nnUNetTrainer", "nnUNetTrainerUnifiedFocal"):
        for fold in range(5):
            results.add_training(trainer, [f"case_{fold}"], lambda array, _: array, fold)
    for name, value in results.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    exec(python_of("docs/comparing.md"), {})
    assert "Sensitivity" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize("flag", ["--version", "path", "list"])
def test_commands_without_data_run(flag, capsys):
    with contextlib.suppress(SystemExit):
        assert main([flag]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("program", ["losses_page.py", "imports.py"])
def test_generated_pages_are_up_to_date(program):
    command = [sys.executable, str(ROOT / "tools" / program), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_of_a_custom_loss_works(monkeypatch):
    """nnU-Net finds it, also the second time, for which it loads the module anew."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setitem(losses.SegmentationLoss.registry, "PowerCrossEntropyLoss", None)
    losses.SegmentationLoss.registry.pop("PowerCrossEntropyLoss")
    page = TEXTS[ROOT / "docs" / "own_loss.md"]
    (name,) = re.findall(r"-tr (nnUNetTrainerPowerCrossEntropy\S*)", page)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "examples" / "own_loss_trainers.py", folder)
        monkeypatch.setenv("nnUNet_extTrainer", folder)
        for _ in range(2):
            trainer = recursive_find_trainer_class_by_name(name)
    assert (trainer.__name__, trainer.set_learning_rate) == (name, 0.02)
    loss = trainer.loss_class(**trainer.loss_parameters)
    logits, target = torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3)
    assert loss(logits, target).item() == pytest.approx(math.log(2) ** 2)
    ignoring = trainer.loss_class(power=1, ignore_label=2)
    ignoring(logits.requires_grad_(), 2 * target.add(1)).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown == (ROOT / "examples" / "own_loss_trainers.py").read_text(encoding="utf-8")


def test_the_comparison_with_other_implementations_is_up_to_date(monkeypatch):
    """Values of docs/numerics.md; rounding may differ between machines."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import numerics

    page = TEXTS[ROOT / "docs" / "numerics.md"]
    for *row, relative, absolute in numerics.agreement():
        assert f"| {' | '.join(row)} |" in page
        assert float(relative) < 1e-6
        assert float(absolute) < 1e-6
    pytest.importorskip("monai")
    for row in numerics.differences():
        assert f"| {' | '.join(row)} |" in page
    assert numerics.absent_class() in page


def test_the_supported_versions_were_tested(monkeypatch):
    """Fail for a lower bound that was changed without a test run, and for a failed run."""
    pytest.importorskip("tomllib", reason="Python 3.11")
    monkeypatch.syspath_prepend(ROOT / "tools")
    import versions

    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    table = [line for line in page[page.index("| versions |") :].splitlines() if "|" in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    rows = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    assert {row["versions"] for row in rows} == set(versions.SETS)
    lines = versions.project()["classifiers"]
    stated = {line.rpartition(" :: ")[2] for line in lines if "Python :: 3." in line}
    assert {row["Python"].rpartition(".")[0] for row in rows} == stated
    for row in rows:
        assert versions.PASSED.fullmatch(row["outcome"]), row
        for constraint in versions.requirements(row["versions"])[1]:
            name, _, bound = constraint.partition("==")
            assert name not in row or Version(row[name]) == Version(bound), row
