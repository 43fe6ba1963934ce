"""The two ways in which nnU-Net finds our trainers: a folder, or a module beside its own.

Nothing here imports torch or nnU-Net, except :func:`look_up`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_unifiedloss._support.files import write_atomically

__all__ = [
    "DiscoveryError",
    "InstallResult",
    "install",
    "trainers_folder",
    "uninstall",
]

VARIABLE = "nnUNet_extTrainer"
MODULE_NAME = "nnunet_unifiedloss_trainers"
MODULE_MARK = "# Written by `nnunet-unifiedloss install`"
# The condition is for those who remove this package and forget the module: nnU-Net imports every
# module of its folder when it looks a trainer up, so an import that fails would break them all.
MODULE_TEXT = f"""{MODULE_MARK}; `nnunet-unifiedloss uninstall` removes it.
import importlib.util

if importlib.util.find_spec("nnunet_unifiedloss") is not None:
    from nnunet_unifiedloss.trainers import __getattr__
"""


class DiscoveryError(RuntimeError):
    """nnU-Net cannot be made to find our trainers this way.

    Attributes:
        remedy: A command or a sentence that helps the user.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class InstallResult:
    """Result of :func:`install` or :func:`uninstall`.

    Attributes:
        path: The module inside nnU-Net.
        action: ``unchanged`` where there was nothing to do.
    """

    path: Path
    action: Literal["installed", "updated", "removed", "unchanged"]


@dataclass(frozen=True)
class LookUp:
    """Result of nnU-Net's own look-up for the names of our trainers.

    Attributes:
        installed: True if it finds them without ``nnUNet_extTrainer``.
        found: The names that lead to our trainers.
        missing: The names that lead nowhere.
        clashes: The names that lead to somebody else's class, and that class.
    """

    installed: bool
    found: list[str]
    missing: list[str]
    clashes: dict[str, str]


def trainers_folder() -> Path:
    """The folder for ``nnUNet_extTrainer``.

    Returns:
        The folder of the ``nnunet_unifiedloss.trainers`` package, which is ``trainers/`` of the
        clone in an editable installation.

    Raises:
        DiscoveryError: The package is installed without it.
    """
    spec = importlib.util.find_spec("nnunet_unifiedloss.trainers")
    if spec is None or not spec.submodule_search_locations:
        raise DiscoveryError(
            "the trainers are missing from this installation of nnunet-unifiedloss",
            "pip install --force-reinstall --no-deps nnunet-unifiedloss",
        )
    return Path(spec.submodule_search_locations[0]).resolve()


def variants_folder() -> Path:
    """The folder of nnU-Net's own trainer variants, wherever nnU-Net is imported from.

    Raises:
        DiscoveryError: There is no nnU-Net v2 in this environment.
    """
    spec = importlib.util.find_spec("nnunetv2")
    # the rest that pip leaves of an uninstalled nnU-Net with our module in it is found, too
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "training" / "nnUNetTrainer" / "variants"
        if (folder / "__init__.py").is_file():
            return folder
    raise DiscoveryError("nnU-Net v2 is not installed in this environment", "pip install nnunetv2")


def check_found(trainers: Iterable[str]) -> None:
    """Refuse trainers of ours that nnU-Net would not find, without importing it.

    Args:
        trainers: Names of trainers, ours or not.

    Raises:
        DiscoveryError: One is ours, and this environment is not set up for it.
    """
    sources = sorted(trainers_folder().glob("unifiedloss_*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    known = set(re.findall(r"^class (nnUNetTrainer\w+)", text, re.MULTILINE))
    ours = [name for name in trainers if name.partition("_")[0] in known]
    # the variable may name another clone on purpose
    external = any(Path(folder, sources[0].name).is_file() for folder in external_folders())
    if ours and not external and module_state() in ("absent", "foreign"):
        raise DiscoveryError(
            f"nnU-Net does not find {ours[0]} in this environment", "nnunet-unifiedloss install"
        )


def export_line(variable: str, value: str) -> str:
    """The line that sets an environment variable in the user's shell."""
    return f'$env:{variable} = "{value}"' if os.name == "nt" else f'export {variable}="{value}"'


def external_line() -> str:
    """The line that makes nnU-Net find our trainers without a change to its folder."""
    return export_line(VARIABLE, "$(nnunet-unifiedloss path)")


def external_folders() -> list[str]:
    """The folders in ``nnUNet_extTrainer``, split as nnU-Net splits them."""
    return [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry.strip()]


def module_state() -> Literal["absent", "current", "outdated", "foreign"]:
    """State of the module that :func:`install` writes.

    Returns:
        ``outdated`` for a module of another version, ``foreign`` for what we did not write.

    Raises:
        DiscoveryError: There is no nnU-Net, or the module cannot be read.
    """
    path = variants_folder() / f"{MODULE_NAME}.py"
    with _access(path, f"make {path} readable"):
        if not os.path.lexists(path):
            return "absent"
        content = path.read_bytes() if path.is_file() else b""
    if content == MODULE_TEXT.encode():
        return "current"
    return "outdated" if content.startswith(MODULE_MARK.encode()) else "foreign"


def install() -> InstallResult:
    """Place a module in nnU-Net's folder through which it finds our trainers like its own.

    Returns:
        Where the module is and whether it was written now.

    Raises:
        DiscoveryError: There is no nnU-Net, its folder cannot be written to, or a file that we did
            not write has the module's name.
    """
    path, state = variants_folder() / f"{MODULE_NAME}.py", module_state()
    if state == "foreign":
        raise _foreign(path)
    if state == "current":
        return InstallResult(path, "unchanged")
    with _access(path, f"leave that folder as it is and set: {external_line()}"):
        write_atomically(path, MODULE_TEXT)
    importlib.invalidate_caches()
    return InstallResult(path, "installed" if state == "absent" else "updated")


def uninstall() -> InstallResult:
    """Remove what :func:`install` wrote; nnU-Net's folder is then as it was before.

    Returns:
        Where the module was and whether it was removed now.

    Raises:
        DiscoveryError: There is no nnU-Net, its folder cannot be written to, or a file that we did
            not write has the module's name.
    """
    path, state = variants_folder() / f"{MODULE_NAME}.py", module_state()
    if state == "foreign":
        raise _foreign(path)
    with _access(path, f"let the owner of that folder remove {path}"):
        for compiled in (path.parent / "__pycache__").glob(f"{MODULE_NAME}.*.pyc"):
            compiled.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    importlib.invalidate_caches()
    return InstallResult(path, "unchanged" if state == "absent" else "removed")


@contextlib.contextmanager
def _access(path: Path, otherwise: str) -> Iterator[None]:
    """Turn the operating system's refusal into an error that says what to do otherwise."""
    try:
        yield
    except OSError as error:
        message = f"no access to nnU-Net's folder {path.parent}: {error.strerror}"
        raise DiscoveryError(message, otherwise) from error


def _foreign(path: Path) -> DiscoveryError:
    return DiscoveryError(
        f"{path} was not written by nnunet-unifiedloss and is left alone",
        f"move it away, or set: {external_line()}",
    )


def look_up() -> LookUp:
    """Ask nnU-Net's own look-up for every trainer of the catalogue.

    Imports torch and all of nnU-Net's trainers, which takes seconds.

    Returns:
        Which names it finds, and by which way.

    Raises:
        Exception: Whatever stops nnU-Net's look-up, as it would stop a training.
    """
    from nnunet_unifiedloss.training.catalogue import catalogue
    from nnunet_unifiedloss.training.trainer import LossTrainer

    names = [entry.trainer for entry in catalogue()]
    classes = {name: host_look_up(name) for name in names}
    with _without_variable():
        alone = [host_look_up(name) for name in names]
    ours = [name for name, cls in classes.items() if cls and issubclass(cls, LossTrainer)]
    return LookUp(
        installed=any(cls and issubclass(cls, LossTrainer) for cls in alone),
        found=ours,
        missing=[name for name, cls in classes.items() if cls is None],
        clashes={
            name: f"{cls.__module__}.{cls.__qualname__}"
            for name, cls in classes.items()
            if cls and name not in ours
        },
    )


def host_look_up(name: str) -> type[Any] | None:
    """The class that nnU-Net trains under a name, None where it finds none."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports every module it inspects
            found: type[Any] = recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        if "Could not find requested nnunet trainer" not in str(error):
            raise
        return None
    return found


@contextlib.contextmanager
def _without_variable() -> Iterator[None]:
    value = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[VARIABLE] = value
