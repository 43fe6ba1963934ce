"""What the documentation names exists, and the pages that are generated are up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_unifiedloss import losses, naming
from nnunet_unifiedloss.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pages
def test_trainers_and_losses_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"\bnnUNetTrainer[A-Z]\w*(?:[.-]\w+)*", text)):
        naming.parse(name)
    if page.name == "numerics.md":  # written by a program that has evaluated them, others' too
        return
    for name in set(re.findall(r"\b(?!MONAI|DC_)[A-Z][A-Za-z]+Loss\b", text)):
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
