"""What the documentation names exists, and the pages that are generated are up to date."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from nnunet_unifiedloss import losses, naming
from nnunet_unifiedloss.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pages
def test_trainers_and_losses_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"\bnnUNetTrainer[A-Z]\w*(?:[.-]\w+)*", text)):
        if "PowerCrossEntropy" not in name:  # that of own_loss.md
            naming.parse(name)
    if page.name == "numerics.md":  # written by a program that has evaluated them, others' too
        return
    for name in set(re.findall(r"\b(?!MONAI|DC_|PowerCross)[A-Z][A-Za-z]+Loss\b", text)):
        others = "HausdorffDTLoss TverskyLoss DiceCELoss DiceFocalLoss MemoryEfficientSoftDiceLoss"
        assert hasattr(losses, name) or name in others, name


@pages
def test_commands_exist(page, capsys):
    commands = set(re.findall(r"nnunet-unifiedloss ([a-z]+)", page.read_text(encoding="utf-8")))
    for command in commands:
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0, command
    capsys.readouterr()


@pages
def test_flags_of_compare_exist(page, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    known = capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"nnunet-unifiedloss compare ([^`#\n]*)", text):
        for flag in re.findall(r"(?<![\w-])--?[a-z]\w*", line):
            assert flag in known, flag


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_nnunets_own_commands_exist():
    scripts = Path(sys.executable).parent
    for page in PAGES:
        for command in set(re.findall(r"nnUNetv2_\w+", page.read_text(encoding="utf-8"))):
            assert (scripts / command).exists(), command


def test_the_page_of_losses_is_up_to_date():
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_loss_of_ones_own_is_found_and_trained_with(monkeypatch):
    """By nnU-Net's lookup, twice, since it loads such modules anew each time."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setitem(losses.SegmentationLoss.registry, "PowerCrossEntropyLoss", None)
    losses.SegmentationLoss.registry.pop("PowerCrossEntropyLoss")
    name = "nnUNetTrainerPowerCrossEntropy_power2_5epochs"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "docs" / "own_loss_trainers.py", folder)
        monkeypatch.setenv("nnUNet_extTrainer", folder)
        for _ in range(2):
            trainer = recursive_find_trainer_class_by_name(name)
    assert (trainer.__name__, trainer.set_epochs) == (name, 5)
    loss = trainer.loss_class(**trainer.loss_parameters)
    logits, target = torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3)
    assert loss(logits, target).item() == pytest.approx(math.log(2) ** 2)
    page = (ROOT / "docs" / "own_loss.md").read_text(encoding="utf-8")
    module = (ROOT / "docs" / "own_loss_trainers.py").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown in module
