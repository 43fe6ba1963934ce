"""The command line: what is printed where, and exit codes."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_unifiedloss import __version__
from nnunet_unifiedloss.cli import main
from nnunet_unifiedloss.demo import run as demo_run
from nnunet_unifiedloss.training import catalogue, doctor, install
from nnunet_unifiedloss.training.doctor import Finding
from nnunet_unifiedloss.training.install import DiscoveryError, InstallResult

COMMANDS = (
    *("path", "install", "uninstall", "list", "doctor", "demo"),
    *("advise", "compare", "sweep", "export", "verify"),
)
ENTRY = catalogue.TrainerEntry(
    trainer="nnUNetTrainerVeryImbalancedCompoundLossOfTheLiterature",
    loss="VeryImbalancedCompoundLossOfTheLiteratureLoss",
    parameters={"weight_dice": 1.0, "gamma": None, "class_weights": (0.1, 1.0)},
    paper="Nobody 2020 [b], arXiv:0000.00000",
    when="Whenever a table must show a long line without cutting it into useless pieces.",
    when_not="Otherwise.",
    scale=2.5,
    family="compound",
)


def python(*arguments, **keywords):
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        **keywords,
    )


def usage_error(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


# --- usage


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {command}" in shown for command in COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"nnunet-unifiedloss {__version__}\n"


def test_an_unknown_command_names_the_possible_ones(capsys):
    shown = usage_error(capsys, "instal")
    assert "instal" in shown
    assert all(command in shown for command in COMMANDS)
    assert "COMMAND" in usage_error(capsys)


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many"])
def test_epochs_must_be_a_number(capsys, number):
    assert f"must be a whole number above 0, got '{number}'" in usage_error(
        capsys, "demo", f"--epochs={number}"
    )


@pytest.mark.parametrize("command", ["demo", "doctor"])
def test_device_is_one_of_nnunets(capsys, command):
    shown = usage_error(capsys, command, "-device", "gpu")
    assert all(device in shown for device in ("cuda", "mps", "cpu"))


def test_help_and_path_do_not_wait_for_torch():
    """They start in a fraction of a second, even where torch is broken."""
    source = (
        "import sys; from nnunet_unifiedloss.cli import main; code = main(['path']);"
        "sys.exit(code or str({'torch', 'nnunetv2', 'rich', 'pandas'} & sys.modules.keys()))"
    )
    out, err = python("-c", source).communicate()
    assert err == "set()\n"
    assert out == f"{install.trainers_folder()}\n"

    start = time.monotonic()
    python("-m", "nnunet_unifiedloss", "--help").communicate()
    assert time.monotonic() - start < 5  # torch alone takes longer on a busy machine


# --- commands


def test_path_prints_the_path_only(capsys):
    assert main(["path"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{install.trainers_folder()}\n"
    assert not shown.err


@pytest.mark.parametrize(
    ("command", "action", "shown"),
    [
        ("install", "installed", "installed: module.py\n"),
        ("install", "updated", "updated: module.py\n"),
        ("install", "unchanged", "already installed: module.py\n"),
        ("uninstall", "removed", "removed: module.py\n"),
        ("uninstall", "unchanged", "not installed: module.py\n"),
    ],
)
def test_install_and_uninstall_say_what_they_did(monkeypatch, capsys, command, action, shown):
    result = InstallResult(Path("module.py"), action)
    monkeypatch.setattr(install, command, lambda: result)
    assert main([command]) == 0
    out = capsys.readouterr().out
    assert out.startswith(shown)
    assert ("-tr nnUNetTrainerUnifiedFocal" in out) == (command == "install")


def test_list_json_is_the_catalogue(capsys):
    assert main(["list", "--json"]) == 0
    entries = catalogue.catalogue()
    as_json = json.loads(json.dumps([dataclasses.asdict(entry) for entry in entries]))
    assert json.loads(capsys.readouterr().out) == as_json
    assert "nnUNetTrainerUnifiedFocal" in {entry["trainer"] for entry in as_json}


def test_list_in_a_pipe_has_a_line_for_each_trainer(monkeypatch, capsys):
    monkeypatch.setattr(catalogue, "catalogue", lambda: [ENTRY])
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    (line,) = [line for line in out.splitlines() if ENTRY.trainer in line]
    parameters = "weightDice=1 gamma=None classWeights=0.1-1"
    for text in (ENTRY.loss, " 2.5 ", ENTRY.paper, ENTRY.when, parameters):
        assert text in line


def test_list_in_a_terminal_fits_and_keeps_names_whole(monkeypatch):
    terminal = open_terminal(monkeypatch)
    assert main(["list"]) == 0
    out = terminal.getvalue()
    assert all(f" {entry.trainer} " in out for entry in catalogue.catalogue())
    assert "…" not in out
    assert max(len(line) for line in out.splitlines() if "│" in line) <= 80


def open_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, no colours
    return sys.stdout


FINDINGS = [
    Finding("versions", "ok", "Python 3 [x]"),
    Finding("device", "warning", "no GPU", "train with -device cpu"),
    Finding(
        "look-up",
        "error",
        "found nothing in /a folder" * 9,
        'export nnUNet_extTrainer="$(path)"' * 9,
    ),
]


@pytest.mark.parametrize(("count", "code"), [(1, 0), (2, 0), (3, 1)])
def test_doctor_fails_on_errors_only(monkeypatch, capsys, count, code):
    monkeypatch.setattr(doctor, "diagnose", lambda device: FINDINGS[:count])
    assert main(["doctor"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("training would fail" if code else "training can start")
    assert lines[0].startswith("ok      versions")
    assert lines[0].endswith("Python 3 [x]")
    # a remedy is there to be copied: on a line of its own, unbroken
    remedies = [line.partition("remedy: ")[2] for line in lines if "remedy: " in line]
    assert remedies == [finding.remedy for finding in FINDINGS[1:count]]


def test_doctor_in_a_terminal_breaks_no_paths(monkeypatch):
    monkeypatch.setattr(doctor, "diagnose", lambda device: FINDINGS)
    terminal = open_terminal(monkeypatch)
    assert main(["doctor"]) == 1
    assert f"error   look-up   {FINDINGS[2].detail}\n" in terminal.getvalue()


def test_doctor_json(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(doctor, "diagnose", lambda device: asked.append(device) or FINDINGS)
    assert main(["doctor", "--json", "-device", "mps"]) == 1
    assert asked == ["mps"]
    assert json.loads(capsys.readouterr().out) == [dataclasses.asdict(each) for each in FINDINGS]


@pytest.mark.parametrize(
    ("arguments", "folder", "epochs", "device"),
    [
        ([], "unifiedloss-demo", 5, "cpu"),
        (["-o", "a b", "--epochs", "10", "-device", "cuda"], "a b", 10, "cuda"),
    ],
)
def test_demo_hands_its_arguments_on(monkeypatch, arguments, folder, epochs, device):
    calls = []
    monkeypatch.setattr(
        demo_run, "run_demo", lambda *args, **keywords: calls.append((args, keywords))
    )
    assert main(["demo", *arguments]) == 0
    ((positional, keywords),) = calls
    assert positional == (Path(folder),)
    assert keywords.pop("console") is not None
    assert keywords == {"epochs": epochs, "device": device}


# --- what goes wrong


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            DiscoveryError("/nnunetv2 cannot be written to", 'export a="$(b)"'),
            'error: /nnunetv2 cannot be written to\nremedy: export a="$(b)"\n',
        ),
        (ValueError("gamma must be\n   ≥ 0, got [-1]"), "error: gamma must be\n   ≥ 0, got [-1]\n"),
        (PermissionError(13, "Permission denied", "/a"), "[Errno 13] Permission denied: '/a'\n"),
        (RuntimeError(), "error: RuntimeError\n"),
        (ImportError("No module named 'torch'"), "remedy: nnunet-unifiedloss doctor\n"),
    ],
)
def test_an_error_keeps_its_lines_and_names_its_remedy(monkeypatch, capsys, error, shown):
    def fail():
        raise error

    monkeypatch.setattr(install, "install", fail)
    assert main(["install"]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.endswith(shown)


def test_interruption(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "install", interrupt)
    assert main(["install"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(install, "install", lambda: {}["bug"])
    with pytest.raises(KeyError):
        main(["install"])


def test_a_reader_that_leaves_early():
    """The reader of ``nnunet-unifiedloss list | head -1`` closes the pipe."""
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # fails when the buffer is written
    process = python("-m", "nnunet_unifiedloss", "path", env=environment)
    process.stdout.close()
    assert process.wait() == 1
    assert process.stderr.read() == ""


def test_a_locale_without_greek_letters():
    source = (
        "from nnunet_unifiedloss.cli import main; from nnunet_unifiedloss.training import install\n"
        "def fail(): raise ValueError('γ < 0')\n"
        "install.install = fail; raise SystemExit(main(['install']))"
    )
    process = python("-c", source, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert process.communicate() == ("", "error: ? < 0\n")
    assert process.returncode == 1
