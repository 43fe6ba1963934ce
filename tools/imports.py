"""Draw the imports between the subpackages, from the source, into docs/inside.md.

python tools/imports.py          # write the drawing
python tools/imports.py --check  # exit code 1 if the drawing is out of date
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "inside.md"
PACKAGE = "nnunet_unifiedloss"
BEGIN, END = "```mermaid\n", "```\n"


@dataclass(frozen=True)
class Import:
    """One imported name.

    Attributes:
        module: The importing module.
        target: A module of this package, or the top-level name of another package.
        deferred: True for an import inside a function or for type checkers only.
    """

    module: str
    target: str
    deferred: bool


def modules() -> dict[str, Path]:
    """All modules of the package by name, the trainers included."""
    folders = {PACKAGE: ROOT / PACKAGE, f"{PACKAGE}.trainers": ROOT / "trainers"}
    return {
        ".".join((name, *path.relative_to(folder).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for name, folder in folders.items()
        for path in sorted(folder.rglob("*.py"))
    }


def imports() -> list[Import]:
    """Every import of every module."""
    known = modules()
    return [
        Import(module, target, deferred)
        for module, path in known.items()
        for target, deferred in _imports(ast.parse(path.read_text(encoding="utf-8")), known)
    ]


def _imports(
    tree: ast.AST, known: Mapping[str, Path], deferred: bool = False
) -> Iterator[tuple[str, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "the package has no relative imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            )
            yield from _imports(node, known, deferred or later)
            continue
        for name in names:
            if name.partition(".")[0] != PACKAGE:
                yield name.partition(".")[0], deferred
                continue
            while name not in known:  # a name defined in a module
                name = name.rpartition(".")[0]
            yield name, deferred


def subpackage(module: str) -> str:
    """The package or module directly below ``nnunet_unifiedloss`` that contains a module."""
    return f"{module}.".split(".")[1]


def drawing() -> str:
    """The imports between subpackages in Mermaid's language.

    Dashed arrows are imports inside functions. An arrow that other arrows imply is left out.
    """
    at_once: dict[str, set[str]] = {}
    later: dict[str, set[str]] = {}
    for entry in imports():
        source, target = subpackage(entry.module), subpackage(entry.target)
        ours = entry.target.startswith(PACKAGE) and source and target not in ("", source)
        if ours and source != "__main__":
            (later if entry.deferred else at_once).setdefault(source, set()).add(target)
    both = {name: at_once.get(name, set()) | later.get(name, set()) for name in at_once | later}
    order = list(TopologicalSorter(both).static_order())
    lines = ["flowchart TD"]
    for source in reversed(order):
        for target in sorted(both.get(source, ())):
            implied = any(target in _reached(other, both) for other in both[source] - {target})
            if not implied:
                arrow = "-->" if target in at_once.get(source, ()) else "-.->"
                lines.append(f"    {source} {arrow} {target}")
    return "\n".join(lines) + "\n"


def _reached(source: str, targets: Mapping[str, set[str]]) -> set[str]:
    """All subpackages that one imports, directly or indirectly."""
    found = set(targets.get(source, ()))
    return found.union(*(_reached(target, targets) for target in found))


def page() -> str:
    """The whole page with the drawing up to date."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{drawing()}{END}{after}"


def main() -> int:
    """Write or check the drawing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if the drawing is out of date")
    text = page()
    if parser.parse_args().check:
        if PAGE.read_text(encoding="utf-8") != text:
            print(f"{PAGE} is out of date; run: python tools/imports.py")
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
