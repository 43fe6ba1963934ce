"""The commands in the documentation, each read by the argument parser of the program it calls."""

from __future__ import annotations

import argparse
import functools
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

from _pytest.mark.expression import Expression
from packaging.requirements import Requirement

from nnunet_unifiedloss.cli.program import make_parser
from nnunet_unifiedloss.cli.sweep import check_arguments
from nnunet_unifiedloss.compare.metrics import METRICS
from nnunet_unifiedloss.training import names

ROOT = Path(__file__).parents[2]
# their arguments do not name anything of this package
OTHER_PROGRAMS = {"export", "apt-get", "unzip"}
EXAMPLE_LOSS = "nnUNetTrainerPowerCrossEntropy"  # of own_loss.md; another test uses it


class WrongCommandError(Exception):
    """A command that its program would reject."""


class Parsed(BaseException):
    """Raised to leave a program as soon as its parser has accepted the arguments."""

    def __init__(self, arguments: argparse.Namespace, flags: set[str]) -> None:
        super().__init__()
        self.arguments, self.flags = arguments, flags


def commands(page: str) -> Iterator[str]:
    """The commands of a page: lines of code blocks without a language, and inline code.

    Inline code counts as a command if it has arguments and no ellipsis.
    """
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL):
        if not language:
            for line in block.replace("\\\n", " ").splitlines():
                yield from _without_shell(line)
    text = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)
    programs = r"(?:nnunet-unifiedloss \w+|nnUNetv2_\w+|python|pytest|pip|export)"
    for line in re.findall(rf"`({programs} [^`…]+)`", text.replace("\n", " ")):
        yield from _without_shell(line)


def _without_shell(line: str) -> Iterator[str]:
    """The single commands of a line."""
    words = shlex.split(line, comments=True)
    yield from re.findall(r"\$\(([^)]+)\)", line)
    command: list[str] = []
    for word in [*words, "&&"]:
        if word == "&&":
            if command and command != ["…"]:
                yield shlex.join(command)
            command = []
        else:
            command.append(word)


def check(command: str) -> set[str]:
    """Parse a command in the same way as its program.

    Returns:
        The flags of the program if it is one of the repository's Python programs.

    Raises:
        WrongCommandError: The program would reject the command, or is unknown.
    """
    program, *arguments = shlex.split(command)
    program = program.removeprefix(".venv/bin/")
    if program == "nnunet-unifiedloss":
        parsed = _caught(lambda: make_parser().parse_args(arguments), command).arguments
        _check_trainers(parsed)
        if not set(getattr(parsed, "metrics", None) or ()) <= METRICS.keys():
            raise WrongCommandError(f"{command}: unknown metrics")
        if parsed.run.__module__ == check_arguments.__module__:
            try:
                check_arguments(parsed)
            except ValueError as error:
                raise WrongCommandError(f"{command}: {error}") from error
    elif program.startswith("nnUNetv2_"):
        _check_trainers(_nnunets(program, arguments).arguments)
    elif program in ("python", "python3"):
        return _check_python(arguments, command)
    elif program == "pytest":
        _check_pytest(arguments, command)
    elif program == "pip":
        _check_pip(arguments, command)
    elif program not in OTHER_PROGRAMS:
        raise WrongCommandError(f"{command}: unknown program {program}")
    return set()


def _caught(run: object, command: str, words: list[str] | None = None) -> Parsed:
    """The arguments as the first parser of a program reads them."""
    original = argparse.ArgumentParser.parse_known_args  # which parse_args calls

    def parse_known_args(self, args=None, namespace=None):
        arguments, unknown = original(self, args, namespace)
        if unknown:
            self.error(f"unknown: {' '.join(unknown)}")
        raise Parsed(arguments, set(self._option_string_actions))

    def error(self, message):
        raise WrongCommandError(f"{command}: {message}")

    parser = argparse.ArgumentParser
    with (
        mock.patch.object(parser, "parse_known_args", parse_known_args),
        mock.patch.object(parser, "error", error),
        # the command line accepts abbreviated flags; documentation spells them out
        mock.patch.object(parser, "_get_option_tuples", return_value=[]),
        mock.patch.object(sys, "argv", words or sys.argv),
    ):
        try:
            run()
        except Parsed as parsed:
            return parsed
    raise WrongCommandError(f"{command}: its program does not parse arguments")


def _nnunets(program: str, arguments: list[str]) -> Parsed:
    scripts = {script.name: script for script in entry_points(group="console_scripts")}
    if program not in scripts:
        raise WrongCommandError(f"nnU-Net has no {program}")
    words = [program, *arguments]
    return _caught(scripts[program].load(), shlex.join(words), words)


def _check_trainers(arguments: argparse.Namespace) -> None:
    named = getattr(arguments, "tr", None) or []
    names = [named] if isinstance(named, str) else list(named)
    for name in [*names, *filter(None, [getattr(arguments, "baseline", None)])]:
        check_trainer(name)


def check_trainer(name: str) -> None:
    """Raise an error if neither nnU-Net nor this package has a trainer of this name."""
    if names.loss_of(name) is not None:
        names.parse(name)
    elif name not in host_trainers() and not name.startswith(EXAMPLE_LOSS):
        raise WrongCommandError(f"neither nnU-Net nor this package has a trainer {name}")


@functools.cache
def host_trainers() -> set[str]:
    """The names of nnU-Net's own trainers, from its source."""
    (package,) = find_spec("nnunetv2").submodule_search_locations
    sources = Path(package, "training", "nnUNetTrainer").rglob("*.py")
    texts = [path.read_text(encoding="utf-8") for path in sources]
    return set(re.findall(r"^class (nnUNetTrainer\w*)", "\n".join(texts), re.MULTILINE))


def _check_python(arguments: list[str], command: str) -> set[str]:
    if arguments[:2] == ["-m", "venv"]:
        return set()
    script = Path(arguments[0])
    found = [path for path in (ROOT / script, ROOT / "examples" / script) if path.is_file()]
    if not found:
        raise WrongCommandError(f"{command}: there is no {script}")
    source = found[0].read_text(encoding="utf-8")
    if "ArgumentParser(" in source:
        with mock.patch.object(sys, "path", [str(found[0].parent), *sys.path]):
            words = [str(found[0]), *arguments[1:]]
            run = functools.partial(runpy.run_path, str(found[0]), run_name="__main__")
            return _caught(run, command, words).flags
    if arguments[1:] and "sys.argv" not in source:
        raise WrongCommandError(f"{command}: the program takes no arguments")
    return set()


def _check_pytest(arguments: list[str], command: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m")
    parser.add_argument("-k")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-n")
    parser.add_argument("files", nargs="*", type=Path)
    parsed = _caught(lambda: parser.parse_args(arguments), command).arguments
    for path in parsed.files:
        if not (ROOT / path).is_file():
            raise WrongCommandError(f"{command}: there is no {path}")
    sources = [ROOT / path for path in parsed.files] or (ROOT / "tests").rglob("test_*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for expression, possible in (
        (parsed.m, r"\bmark\.{}\b"),
        (parsed.k, r"^(?:async )?def test_\w*{}"),
    ):
        for word in re.findall(r"\w+", expression or ""):
            known = word in ("and", "or", "not") or re.search(
                possible.format(word), text, re.MULTILINE
            )
            if not known:
                raise WrongCommandError(f"{command}: no test matches {word}")
        Expression.compile(expression or "")


def _check_pip(arguments: list[str], command: str) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    _, _, extras = project.partition("[project.optional-dependencies]\n")
    ours = set(re.findall(r"^(\w+) = \[", extras.partition("\n\n")[0], re.MULTILINE))
    if arguments[0] != "install":
        raise WrongCommandError(f"{command}: only pip install is expected")
    for word in arguments[1:]:
        if word == "-e":
            continue
        requirement = Requirement(word.replace(".", "nnunet-unifiedloss", 1))
        if requirement.name != "nnunet-unifiedloss" or not requirement.extras <= ours:
            raise WrongCommandError(f"{command}: {word} is not this package, or has no such extra")


@functools.cache
def known_flags() -> set[str]:
    """All flags of nnU-Net's, pytest's and our commands that documentation may name."""
    flags = {"-m", "-k", "-s", "-n", "--help", "--version"}
    parser = make_parser()
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for command in subparsers.choices.values():
        flags |= set(command._option_string_actions)
    for program, arguments in (
        ("nnUNetv2_train", ["4", "2d", "0"]),
        ("nnUNetv2_predict", ["-d", "4", "-i", "i", "-o", "o", "-c", "2d"]),
        ("nnUNetv2_plan_and_preprocess", ["-d", "4"]),
        ("nnUNetv2_preprocess", ["-d", "4"]),
        ("nnUNetv2_find_best_configuration", ["4"]),
    ):
        flags |= _nnunets(program, arguments).flags
    return flags


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> list[str]:
    """The targets of the links and pictures of a page."""
    text = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text))
