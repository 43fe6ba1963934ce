"""path, install and uninstall, on a copy of nnU-Net or a folder that looks like it."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_unifiedloss.training import install
from nnunet_unifiedloss.training.install import DiscoveryError

MODULE = "nnunet_unifiedloss_trainers.py"


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder, with the files' bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def host(tmp_path, monkeypatch) -> Path:
    """A package that is found as nnU-Net; returned is its folder of variants."""
    variants = tmp_path / "site" / "nnunetv2" / "training" / "nnUNetTrainer" / "variants"
    variants.mkdir(parents=True)
    for folder in (variants, *variants.parents[:3]):
        (folder / "__init__.py").touch()
    py_compile.compile(str(variants / "__init__.py"))
    # the real one must be out of reach: these tests write
    others = [entry for entry in sys.path if not (Path(entry) / "nnunetv2").exists()]
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *others])
    monkeypatch.setattr(sys, "meta_path", [BuiltinImporter, FrozenImporter, PathFinder])
    monkeypatch.delitem(sys.modules, "nnunetv2", raising=False)
    return variants


def test_trainers_folder_holds_the_modules_that_nnunet_scans():
    folder = install.trainers_folder()
    assert folder.is_absolute()
    assert (folder / "unifiedloss_compound.py").is_file()


def test_install_is_idempotent_and_uninstall_leaves_nothing(host):
    before = contents(host)
    first = install.install()
    assert (first.path, first.action) == (host / MODULE, "installed")
    assert set(contents(host)) - set(before) == {MODULE}
    assert install.module_state() == "current"
    assert install.install().action == "unchanged"

    py_compile.compile(str(host / MODULE))  # as its import by nnU-Net does
    assert len(contents(host)) == len(before) + 2
    assert install.uninstall().action == "removed"
    assert contents(host) == before
    assert install.uninstall().action == "unchanged"


def test_install_finds_nnunet_through_the_import_system(host, monkeypatch):
    """An editable nnU-Net is not on sys.path: a finder of its own leads to it."""
    spec = importlib.util.find_spec("nnunetv2")
    sys.path.remove(str(host.parents[3]))

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return spec if name == "nnunetv2" else None

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert install.install().path == host / MODULE
    assert "nnunetv2" not in sys.modules  # located, not imported


def test_install_updates_the_module_of_another_version(host):
    (host / MODULE).write_text(f"{install.MODULE_MARK}, long ago.\n")
    assert install.module_state() == "outdated"
    assert install.install().action == "updated"
    assert (host / MODULE).read_text() == install.MODULE_TEXT


@pytest.mark.parametrize("command", [install.install, install.uninstall])
@pytest.mark.parametrize("kind", ["text", "binary", "folder", "dangling link"])
def test_what_we_did_not_write_is_left_alone(host, command, kind):
    if kind == "folder":
        (host / MODULE).mkdir()
    elif kind == "dangling link":
        (host / MODULE).symlink_to(host / "nowhere.py")
    else:
        (host / MODULE).write_bytes(b"import os\n" if kind == "text" else b"\xff\x00")
    before = contents(host)
    with pytest.raises(DiscoveryError, match="was not written by nnunet-unifiedloss") as caught:
        command()
    assert "nnUNet_extTrainer" in caught.value.remedy
    assert contents(host) == before
    assert os.path.lexists(host / MODULE)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize(("owner", "function"), [(Path, "write_bytes"), (os, "replace")])
def test_install_where_nothing_can_be_written_names_the_other_way(
    host, monkeypatch, code, owner, function
):
    before = contents(host)
    monkeypatch.setattr(owner, function, refusal(code))
    with pytest.raises(DiscoveryError, match=os.strerror(code)) as caught:
        install.install()
    assert str(host) in str(caught.value)
    assert caught.value.remedy.endswith('nnUNet_extTrainer="$(nnunet-unifiedloss path)"')
    assert contents(host) == before


def test_uninstall_where_nothing_can_be_written_keeps_the_module(host, monkeypatch):
    install.install()
    before = contents(host)
    monkeypatch.setattr(Path, "unlink", refusal(errno.EROFS))
    with pytest.raises(DiscoveryError, match=os.strerror(errno.EROFS)) as caught:
        install.uninstall()
    assert str(host / MODULE) in caught.value.remedy
    assert contents(host) == before


def refusal(code):
    """A function that fails as the operating system does; root could write anywhere."""

    def refuse(*arguments, **keywords):
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("command", [install.install, install.uninstall])
def test_without_nnunet_the_error_says_how_to_get_it(host, command):
    # what pip leaves behind when it uninstalls nnU-Net but does not know our module
    install.install()
    for init in host.parents[3].rglob("__init__.py"):
        init.unlink()
    with pytest.raises(DiscoveryError, match="nnU-Net v2 is not installed") as caught:
        command()
    assert caught.value.remedy == "pip install nnunetv2"

    shutil.rmtree(host.parents[2])
    with pytest.raises(DiscoveryError, match="nnU-Net v2 is not installed"):
        command()


def test_the_installed_module_survives_the_removal_of_our_package(monkeypatch):
    """nnU-Net imports it in every look-up, also when nobody asks for a trainer of ours."""
    namespace: dict[str, object] = {}
    exec(install.MODULE_TEXT, namespace)
    assert callable(namespace["__getattr__"])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    namespace = {}
    exec(install.MODULE_TEXT, namespace)
    assert "__getattr__" not in namespace


def test_the_export_line_is_that_of_the_shell(monkeypatch):
    monkeypatch.setattr(install, "os", SimpleNamespace(name="posix"))
    assert install.export_line("nnUNet_raw", "/a b") == 'export nnUNet_raw="/a b"'
    monkeypatch.setattr(install, "os", SimpleNamespace(name="nt"))
    assert install.export_line("nnUNet_raw", "C:/a") == '$env:nnUNet_raw = "C:/a"'


def test_external_folders_are_split_as_nnunet_does(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(["/a b", " ", "", "c"]))
    assert install.external_folders() == ["/a b", "c"]
    monkeypatch.delenv("nnUNet_extTrainer")
    assert install.external_folders() == []


# Ask the look-up of a real nnU-Net, a copy that may be changed, in every situation in turn.
SITUATIONS = """
import json, os, sys
from dataclasses import asdict
from nnunet_unifiedloss.training import install

folder, (foreign, broken) = str(install.trainers_folder()), sys.argv[1:]

def look_up(*external):
    os.environ.pop("nnUNet_extTrainer", None)
    if external:
        os.environ["nnUNet_extTrainer"] = os.pathsep.join(external)
    found = asdict(install.look_up())
    assert os.environ.get("nnUNet_extTrainer", "") == os.pathsep.join(external)
    return found

def forget():  # a new process would not have imported it
    sys.modules.pop("nnunetv2.training.nnUNetTrainer.variants.nnunet_unifiedloss_trainers", None)

report = {"neither": look_up(), "variable": look_up(folder), "shadowed": look_up(foreign, folder)}
try:
    look_up(broken, folder)
except RuntimeError as error:
    report["broken"] = str(error)
report["path"] = str(install.install().path)
report["install"], report["both"] = look_up(), look_up(folder)
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
name = "nnUNetTrainerUnifiedFocal_delta0.7_NoMirroring_2epochs_10iters"
report["composed"] = [find(name).__name__, find("nnUNetTrainer_5epochs").__name__]
install.uninstall()
forget()
report["uninstalled"] = look_up()
print(json.dumps(report))
"""
CLASH = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerUnifiedFocal(nnUNetTrainer):
    pass
"""


def test_nnunets_own_look_up_finds_our_trainers(tmp_path):
    original = Path(importlib.util.find_spec("nnunetv2").submodule_search_locations[0])
    ignored = shutil.ignore_patterns("__pycache__", MODULE)
    shutil.copytree(original, tmp_path / "site" / "nnunetv2", ignore=ignored)
    external = tmp_path / "foreign", tmp_path / "broken"
    for folder, source in zip(external, (CLASH, "raise RuntimeError('boom')"), strict=True):
        folder.mkdir()
        (folder / "somebody_else.py").write_text(source)
    before = contents(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    command = [sys.executable, "-W", "ignore", "-c", SITUATIONS, *map(str, external)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])

    assert report["path"].startswith(str(tmp_path))
    everything = report["install"]["found"]
    assert "nnUNetTrainerUnifiedFocal" in everything
    assert report["neither"] == report["uninstalled"]
    assert report["neither"] == {
        "installed": False,
        "found": [],
        "missing": everything,
        "clashes": {},
    }
    found = {"found": everything, "missing": [], "clashes": {}}
    assert report["variable"] == {"installed": False, **found}
    assert report["install"] == report["both"] == {"installed": True, **found}
    clash = {"nnUNetTrainerUnifiedFocal": "somebody_else.nnUNetTrainerUnifiedFocal"}
    assert report["shadowed"]["clashes"] == clash
    assert set(report["shadowed"]["found"]) == {*everything} - {*clash}
    assert report["broken"] == "boom"
    assert report["composed"] == [
        "nnUNetTrainerUnifiedFocal_delta0.7_NoMirroring_2epochs_10iters",
        "nnUNetTrainer_5epochs",
    ]

    after = contents(tmp_path / "site")
    assert {name: after[name] for name in before} == before
    assert all("__pycache__" in name for name in after.keys() - before.keys())
    assert not [name for name in after if "unifiedloss" in name]
