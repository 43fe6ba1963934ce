"""Every check of doctor, on environments that are broken on purpose."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from nnunet_unifiedloss.training import doctor, install, machine, probe
from nnunet_unifiedloss.training.doctor import diagnose
from nnunet_unifiedloss.training.probe import Probe

FOUND = {"installed": True, "found": ["nnUNetTrainerA", "nnUNetTrainerB"]}
HEALTHY = {
    "workers": 12,
    "torch": {"version": "2.6.0+cu126", "gpu_build": "12.6"},
    "torchvision": "0.21.0+cu126",
    "device": {"available": ["cuda", "cpu"], "chosen": "cuda", "name": "NVIDIA H100"},
    "look-up": {**FOUND, "missing": [], "clashes": {}},
}
Usage = namedtuple("Usage", "free")


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A healthy environment; its probe's values and errors can be changed."""
    found = Probe({**HEALTHY}, {})
    monkeypatch.setattr(doctor, "probe_environment", lambda device: found)
    monkeypatch.setattr(install, "module_state", lambda: "current")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(tmp_path / "nnUNetv2_train"))
    (tmp_path / "nnUNetv2_train").write_text(f"#!{sys.executable}\n")
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: Usage(64 * 10**9))
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (65536, 65536))
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return found


def problems(device=None):
    """Findings that are not ok, by check; each must come with its remedy."""
    findings = [finding for finding in diagnose(device) if finding.status != "ok"]
    assert all(finding.remedy for finding in findings)
    assert len({finding.check for finding in findings}) == len(findings)
    return {finding.check: finding for finding in findings}


def the_problem(check, status, device=None):
    """The only finding that is not ok."""
    found = problems(device)
    assert set(found) == {check}
    assert found[check].status == status
    return found[check]


def fail(probe, step, error):
    del probe.values[step]
    probe.errors[step] = error


def test_a_healthy_environment_has_no_problems(environment):
    findings = diagnose()
    assert {finding.status for finding in findings} == {"ok"}
    assert not any(finding.remedy for finding in findings)
    details = {finding.check: finding.detail for finding in findings}
    assert f"nnunetv2 {metadata.version('nnunetv2')}" in details["versions"]
    assert details["look-up"] == "nnU-Net finds 2 trainers by the installed module"


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="device must be one of cuda, mps, cpu, got 'tpu'"):
        diagnose("tpu")


# --- versions, torch and torchvision


def test_an_nnunet_that_is_too_old(environment, monkeypatch):
    real = metadata.version
    fake = {"nnunetv2": "2.5.1"}
    monkeypatch.setattr(metadata, "version", lambda name: fake.get(name) or real(name))
    finding = the_problem("requirements", "error")
    assert "needs nnunetv2>=2.8.0, found 2.5.1" in finding.detail
    assert finding.remedy == 'pip install "nnunetv2>=2.8.0"'


@pytest.mark.parametrize(("importable", "status"), [(None, "error"), (object(), "warning")])
def test_an_nnunet_without_a_version(environment, monkeypatch, importable, status):
    """It is missing, or a source tree on PYTHONPATH."""
    real = metadata.version

    def version(name):
        if name == "nnunetv2":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: importable)
    assert "nnunetv2" in the_problem("requirements", status).remedy


def test_torch_that_cannot_be_imported(environment):
    for step in ("torch", "torchvision", "device", "look-up"):
        fail(environment, step, "OSError: libcudart.so.12: cannot open shared object file")
    found = problems()
    assert "libcudart" in found["torch"].detail
    assert found["look-up"].status == "error"


NMS = "RuntimeError: operator torchvision::nms does not exist"


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (
            "2.6.0+cu126",
            'pip install --force-reinstall "torch==2.6.0" "torchvision==0.21.*"'
            " --index-url https://download.pytorch.org/whl/cu126",
        ),
        ("2.14.1", 'pip install --force-reinstall "torch==2.14.1" "torchvision==0.29.*"'),
        (
            "2.7.0a0+7c8ec84dab.nv25.03",
            'pip install --force-reinstall "torch==2.7.0a0" "torchvision==0.22.*"',
        ),
    ],
)
def test_torchvision_of_another_build(environment, version, remedy):
    environment.values["torch"] = {"version": version, "gpu_build": None}
    fail(environment, "torchvision", NMS)
    fail(environment, "look-up", NMS)
    found = problems()
    assert set(found) == {"torchvision", "look-up"}
    assert found["torchvision"].status == found["look-up"].status == "error"
    assert NMS in found["torchvision"].detail
    assert found["torchvision"].remedy == remedy


def test_a_command_of_another_environment(environment, tmp_path):
    (tmp_path / "nnUNetv2_train").write_text("#!/opt/conda/envs/other/bin/python3.11\n")
    finding = the_problem("command", "warning")
    assert "/opt/conda/envs/other/bin/python3.11" in finding.detail


def test_no_command(environment, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert the_problem("command", "warning").detail == "nnUNetv2_train is not on PATH"


# --- nnU-Net's folders


@pytest.mark.parametrize(
    ("variable", "unset", "absent", "unwritable"),
    [
        ("nnUNet_raw", "warning", "warning", "warning"),
        ("nnUNet_preprocessed", "error", "error", "error"),
        ("nnUNet_results", "error", "warning", "error"),
    ],
)
def test_folders(environment, monkeypatch, tmp_path, variable, unset, absent, unwritable):
    monkeypatch.delenv(variable)
    assert f'{variable}="$HOME/nnUNet/{variable}"' in the_problem(variable, unset).remedy
    monkeypatch.setenv(variable, "")
    assert the_problem(variable, unset).detail == "not set"
    monkeypatch.setenv(variable, str(tmp_path / "absent"))
    assert the_problem(variable, absent).remedy == f'mkdir -p "{tmp_path / "absent"}"'
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    assert "Not a directory" in the_problem(variable, unwritable).detail


def test_a_folder_on_a_read_only_file_system(environment, monkeypatch):
    real = doctor.tempfile.TemporaryFile

    def refuse(*arguments, **keywords):
        if keywords.get("dir") == os.environ["nnUNet_results"]:
            raise OSError(30, "Read-only file system")
        return real(*arguments, **keywords)

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert "Read-only file system" in the_problem("nnUNet_results", "error").detail


# --- the look-up


def test_no_trainer_is_found(environment):
    names = FOUND["found"]
    nothing = {"installed": False, "found": [], "missing": names, "clashes": {}}
    environment.values["look-up"] = nothing
    finding = the_problem("look-up", "error")
    assert finding.detail == "nnU-Net does not find any trainer of ours"
    assert finding.remedy.startswith("nnunet-unifiedloss install, or: ")


def test_some_trainers_are_not_found(environment):
    environment.values["look-up"] = {**FOUND, "missing": ["nnUNetTrainerC"], "clashes": {}}
    assert "nnUNetTrainerC" in the_problem("look-up", "error").detail


@pytest.mark.parametrize(
    ("installed", "ways"),
    [(True, "the installed module and by nnUNet_extTrainer"), (False, "nnUNet_extTrainer")],
)
def test_the_kind_of_look_up_is_reported(environment, monkeypatch, installed, ways):
    monkeypatch.setenv("nnUNet_extTrainer", str(install.trainers_folder()))
    environment.values["look-up"] = {**HEALTHY["look-up"], "installed": installed}
    details = {finding.check: finding.detail for finding in diagnose()}
    assert details["look-up"] == f"nnU-Net finds 2 trainers by {ways}"
    assert not problems()


def test_a_class_of_somebody_else_has_our_name(environment):
    clashes = {"nnUNetTrainerC": "their_trainers.nnUNetTrainerC"}
    environment.values["look-up"] = {**FOUND, "missing": [], "clashes": clashes}
    finding = the_problem("name clashes", "error")
    assert finding.detail == "nnUNetTrainerC is their_trainers.nnUNetTrainerC, not ours"


@pytest.mark.parametrize("state", ["outdated", "foreign"])
def test_the_installed_module_is_not_what_install_writes(environment, monkeypatch, state):
    monkeypatch.setattr(install, "module_state", lambda: state)
    remedy = the_problem("install", "warning").remedy
    assert (remedy == "nnunet-unifiedloss install") == (state == "outdated")


def test_a_module_that_cannot_be_read(environment, monkeypatch):
    def refuse():
        raise install.DiscoveryError("Permission denied", "ask for permission")

    monkeypatch.setattr(install, "module_state", refuse)
    assert the_problem("environment", "error").remedy == "ask for permission"


def test_external_folders(environment, monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_extTrainer", "/does/not/exist")
    finding = the_problem("nnUNet_extTrainer", "warning")
    assert finding.detail == "/does/not/exist does not exist"
    assert finding.remedy.endswith('nnUNet_extTrainer="$(nnunet-unifiedloss path)"')
    (tmp_path / "unifiedloss_region.py").touch()
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert "another copy" in the_problem("nnUNet_extTrainer", "warning").detail


# --- device, shared memory, open files


@pytest.mark.parametrize(
    ("device", "gpu_build", "status", "remedy"),
    [
        ("cuda", None, "error", "this PyTorch is without CUDA"),
        ("cuda", "12.6", "error", "nvidia-smi"),
        ("mps", None, "error", "train with -device cpu"),
        (None, None, "warning", "train with -device cpu"),
    ],
)
def test_no_gpu(environment, device, gpu_build, status, remedy):
    environment.values["torch"] = {"version": "2.6.0", "gpu_build": gpu_build}
    chosen = device or "cpu"
    environment.values["device"] = {"available": ["cpu"], "chosen": chosen, "name": chosen}
    assert remedy in the_problem("device", status, device).remedy


def test_a_cpu_that_was_asked_for_is_fine(environment):
    environment.values["device"] = {"available": ["cpu"], "chosen": "cpu", "name": "cpu"}
    assert not problems("cpu")


def test_a_gpu_that_the_build_has_no_kernels_for(environment):
    fail(environment, "device", "RuntimeError: CUDA error: no kernel image is available")
    assert "no kernel image" in the_problem("device", "error").detail


@pytest.mark.parametrize(
    ("megabytes", "workers", "status"),
    [(64, 12, "error"), (1000, 12, "warning"), (64, 0, None), (3000, 12, None)],
)
def test_shared_memory(environment, monkeypatch, megabytes, workers, status):
    environment.values["workers"] = workers
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: Usage(megabytes * 10**6))
    if status is None:
        assert not problems()
    else:
        assert "--shm-size=2g" in the_problem("shared memory", status).remedy


@pytest.mark.parametrize(
    ("soft", "workers", "status"),
    [
        (128, 12, "error"),  # nnU-Net's workers were seen to die of it
        (256, 12, "warning"),
        (1024, 12, None),
        (1024, 96, "warning"),
        (1024, 200, "error"),
        (resource.RLIM_INFINITY, 200, None),
    ],
)
def test_open_files(environment, monkeypatch, soft, workers, status):
    environment.values["workers"] = workers
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (soft, 65536))
    if status is None:
        assert not problems()
    else:
        assert the_problem("open files", status).remedy == "ulimit -n 4096"


def test_open_files_with_a_low_hard_limit(environment, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (128, 512))
    remedy = the_problem("open files", "error").remedy
    assert "512" in remedy
    assert 'nnUNet_n_proc_DA="2"' in remedy


def test_an_invalid_number_of_workers(environment, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "many")
    fail(environment, "workers", "ValueError: invalid literal for int() with base 10: 'many'")
    assert "nnUNet_n_proc_DA=many" in the_problem("workers", "error").detail


# --- the process that imports torch and nnU-Net

FAKE_TORCH = """
__version__ = "2.6.0"
class version: cuda = hip = None
class cuda: is_available = staticmethod(lambda: False)
class backends:
    class mps: is_available = staticmethod(lambda: False)
class ones:
    def __init__(self, size, device): pass
    def __add__(self, other): return self
    def item(self): return 2
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Write a package that is imported in place of the real one."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)

    write("torch", FAKE_TORCH)
    return write


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import os; os.abort()", f"exit code {-6 if os.name == 'posix' else 3}"),
        ("raise SystemExit(7)", "exit code 7"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", NMS),
        ("import sys; print('{', 5 * '\\n', file=sys.stdout); import nowhere", "'nowhere'"),
    ],
)
def test_the_probe_survives_what_an_import_does(fake, source, error):
    fake("torchvision", source)
    found = probe.probe_environment(None)
    assert error in found.errors["torchvision"]
    # the steps after it were taken all the same
    assert found.values["device"] == {"available": ["cpu"], "chosen": "cpu", "name": "cpu"}
    assert set(found.values) == {"workers", "torch", "device"}
    assert set(found.errors) == {"torchvision", "look-up"}


def test_the_probe_tries_the_device(fake):
    """A build without kernels for a GPU says that it is available."""
    fake("torch", FAKE_TORCH.replace("return 2", "raise RuntimeError('no kernel image')"))
    fake("torchvision", "")
    assert probe.probe_environment(None).errors["device"] == "RuntimeError: no kernel image"


def test_the_probe_does_not_wait_forever(fake, monkeypatch):
    fake("torchvision", "import time; time.sleep(60)")
    monkeypatch.setattr(probe, "SECONDS_PER_PROBE", 2)
    assert probe.probe_environment(None).errors["torchvision"] == "no answer within 2 s"


def test_the_probe_without_torch(fake):
    fake("torch", "raise OSError('libtorch.so: undefined symbol')")
    found = probe.probe_environment(None)
    assert set(found.values) == {"workers"}
    assert found.errors["torch"] == "OSError: libtorch.so: undefined symbol"


@pytest.mark.slow
def test_the_real_environment_can_train(tmp_path):
    """The whole command; only what depends on the machine may be wrong."""
    folders = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    environment = {
        **os.environ,
        **dict.fromkeys(folders, str(tmp_path)),
        "nnUNet_extTrainer": str(install.trainers_folder()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "nnunet_unifiedloss", "doctor", "--json", "-device", "cpu"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    findings = {finding["check"]: finding for finding in json.loads(run.stdout)}
    for check in ("versions", "torchvision", *folders, "look-up", "device"):
        assert findings[check]["status"] == "ok", findings[check]
    assert "nnUNet_extTrainer" in findings["look-up"]["detail"]
    errors = [finding for finding in findings.values() if finding["status"] == "error"]
    assert run.returncode == bool(errors)
