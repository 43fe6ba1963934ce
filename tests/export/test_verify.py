"""Archives that were tampered with are refused, with the reason, and nothing in them is run."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import re
import stat
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_unifiedloss.cli import main
from nnunet_unifiedloss.export import ArchiveError, export_models, select_models, verify
from nnunet_unifiedloss.training.install import trainers_folder
from tests.helpers.trained_models import DATASET, TRAINER, write_model

FOLDER = f"{DATASET}/{TRAINER}__nnUNetPlans__2d"
CHECKPOINT = f"{FOLDER}/fold_0/checkpoint_final.pth"
MANIFEST = f"{FOLDER}/manifest.json"
SAMPLE = f"{FOLDER}/sample.npz"
MODEL = {
    "folder": FOLDER,
    "configuration": "2d",
    "folds": ["0", "1"],
    "checkpoints": ["checkpoint_final.pth"],
}


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict[str, bytes]:
    """The files of an exported model."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder))
        patch.setenv("nnUNet_extTrainer", str(trainers_folder()))
        write_model(folder, folds=(0, 1))
        models = select_models(folder, DATASET, ["2d"], trainer=TRAINER, folds=["0", "1"])
        export_models(models, folder / "model.zip")
    with zipfile.ZipFile(folder / "model.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def pack(tmp_path):
    """Write files into an archive; ``forged`` updates the manifest, as an attacker would."""

    def write(files: dict[str, bytes], *, forged: bool = False) -> Path:
        if forged:
            manifest = json.loads(files[MANIFEST])
            manifest["files"] = {
                name: hashlib.sha256(value).hexdigest()
                for name, value in files.items()
                if name != MANIFEST
            }
            files = files | {MANIFEST: json.dumps(manifest).encode()}
        path = tmp_path / "tampered.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in files.items():
                archive.writestr(name, value)
        return path

    return write


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ArchiveError, match=reason):
        verify(path)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


def test_what_was_exported_is_accepted(content, pack):
    result = verify(pack(content))
    assert (result.files, result.checkpoints, result.notes) == (len(content) - 1, 2, [])
    assert result.difference == 0


def test_a_changed_byte(content, pack):
    for name in content.keys() - {MANIFEST}:
        changed = bytearray(content[name])
        changed[len(changed) // 2] ^= 1
        refused(pack(content | {name: bytes(changed)}), f"{re.escape(name)}: changed since")


def test_a_changed_byte_in_the_archive_itself(content, pack):
    path = pack(content)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(CHECKPOINT).header_offset + 200
    damaged = bytearray(path.read_bytes())
    damaged[start] ^= 255
    path.write_bytes(damaged)
    refused(path, rf"{re.escape(CHECKPOINT)}: damaged")


def test_a_renamed_a_missing_and_an_added_file(content, pack):
    files = dict(content)
    files[f"{FOLDER}/fold_2/checkpoint_final.pth"] = files.pop(CHECKPOINT)
    refused(pack(files), r"fold_0/.*: missing; .*fold_2/.*: not in the manifest; a file has been")
    del files[f"{FOLDER}/fold_2/checkpoint_final.pth"]
    refused(pack(files), r"checkpoint_final.pth: missing")
    refused(pack(content | {f"{FOLDER}/more.json": b"{}"}), r"more.json: not in the manifest")
    refused(pack(content | {f"{FOLDER}/run.py": b""}, forged=True), r"run.py: not a file of an exp")
    refused(pack(content | {"plans.json": b"{}"}, forged=True), r"plans.json: not a file of an exp")
    files = {name: value for name, value in content.items() if name != MANIFEST}
    refused(pack(files), r"no manifest.json in the archive")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../outside.json", r"'\.\.' leads out of the folder"),
        (f"{FOLDER}/../../../outside.json", r"'\.\.' leads out of the folder"),
        (f"{FOLDER}/..\\outside.json", r"'\.\.' leads out of the folder"),
        ("/etc/outside.json", r"an absolute path"),
        ("C:/outside.json", r"an absolute path"),
        (f"{FOLDER}//outside.json", r"not a plain path"),
        (f"{FOLDER}/./outside.json", r"not a plain path"),
        (f"{FOLDER}\\outside.json", r"not a plain path"),
        (f"{FOLDER}/out\nside.json", r"not a plain path"),
        (f"{FOLDER}/plans.json:stream.json", r"not a plain path"),
        (f"{FOLDER}/plans.json/outside.json", r"both a file and a folder"),
        (f"{FOLDER}/PLANS.json", r"twice in the archive"),
        ("Dataset005_Other/nnUNetTrainer__nnUNetPlans__2d/plans.json", r"not a file of an export"),
        (f"{DATASET}/nnUNetTrainer__nnUNetPlans__2d/plans.json", r"not a file of an exported"),
        (FOLDER + "/", r"not a plain path"),
    ],
)
def test_paths_that_leave_the_folder(content, pack, name, reason):
    refused(pack(content | {name: b"{}"}, forged=True), reason)


def test_a_name_that_hides_its_end(content, pack):
    path = pack(content | {f"{FOLDER}/x.json_evil": b"{}"})
    hidden = path.read_bytes().replace(b"x.json_evil", b"x.json\0evil")
    path.write_bytes(hidden)
    refused(path, "not a plain path")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_a_symbolic_link_or_device(content, pack, kind):
    path = pack(content)
    info = zipfile.ZipInfo(f"{FOLDER}/link.json")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    refused(path, "a symbolic link")


def test_a_name_twice(content, pack):
    path = pack(content)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(CHECKPOINT, b"another")
    refused(path, "twice in the archive")


def test_a_pickle_in_place_of_a_checkpoint(content, pack, tmp_path):
    mark = tmp_path / "it ran"
    bare = pickle.dumps(Payload(mark))
    refused(pack(content | {CHECKPOINT: bare}), "changed since it was exported")
    refused(pack(content | {CHECKPOINT: bare}, forged=True), "bare pickle can run code")
    buffer = io.BytesIO()
    torch.save(Payload(mark), buffer)
    packed = pack(content | {CHECKPOINT: buffer.getvalue()}, forged=True)
    refused(packed, r"not loaded, as it would call .*system")
    original = torch.load(io.BytesIO(content[CHECKPOINT]), weights_only=True)
    buffer = io.BytesIO()
    torch.save(original | {"logging": Payload(mark)}, buffer)
    refused(pack(content | {CHECKPOINT: buffer.getvalue()}, forged=True), r"it would call .*system")
    extra = f"{FOLDER}/fold_0/postprocessing.pkl"
    refused(pack(content | {extra: bare}, forged=True), r"not nnU-Net's postprocessing .*system")
    array = io.BytesIO()
    np.savez(array, patch=np.array([Payload(mark)], dtype=object))
    refused(pack(content | {SAMPLE: array.getvalue()}, forged=True), "not an array file")
    assert not mark.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert mark.exists()  # what was refused does run code where it is let


def test_other_weights_predict_otherwise(content, pack):
    other = content[CHECKPOINT.replace("fold_0", "fold_1")]
    refused(pack(content | {CHECKPOINT: other}, forged=True), r"fold_0.*are not what they were")
    checkpoint = torch.load(io.BytesIO(other), weights_only=True)
    checkpoint["network_weights"].popitem()
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    refused(pack(content | {CHECKPOINT: buffer.getvalue()}, forged=True), "does not fit the netw")
    checkpoint["network_weights"][3] = torch.zeros(1)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    refused(pack(content | {CHECKPOINT: buffer.getvalue()}, forged=True), "does not fit the netw")
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    refused(pack(content | {CHECKPOINT: buffer.getvalue()}, forged=True), "not a checkpoint of")


@pytest.mark.parametrize(
    "change",
    [
        {"patch": np.array("text")},
        {"checkpoint_final.pth": np.zeros(2)},
        {"checkpoint_final.pth": np.full((2, 3, 24, 20), b"text")},
        {"checkpoint_final.pth": np.full((2, 3, 24, 20), np.nan)},
    ],
)
def test_invalid_samples(content, pack, change):
    with np.load(io.BytesIO(content[SAMPLE])) as arrays:
        sample = dict(arrays)
    assert sample.keys() == {"patch", "checkpoint_final.pth"}
    buffer = io.BytesIO()
    np.savez(buffer, **sample | change)
    refused(pack(content | {SAMPLE: buffer.getvalue()}, forged=True), "fold_0/checkpoint_final.pth")


@pytest.mark.parametrize("key", ["network_class_name", "conv_op"])
@pytest.mark.parametrize("name", ["os.system", "torch.hub.load", "numpy.load", 3])
def test_plans_that_name_other_code(content, pack, key, name):
    plans = json.loads(content[f"{FOLDER}/plans.json"])
    architecture = plans["configurations"]["2d"]["architecture"]
    (architecture if key in architecture else architecture["arch_kwargs"])[key] = name
    changed = {f"{FOLDER}/plans.json": json.dumps(plans).encode()}
    refused(pack(content | changed, forged=True), rf"{name} is not a network of torch")


@pytest.mark.parametrize("plans", [b"{}", b"[]", b'{"configurations": {"2d": 1}}', b"no json"])
def test_invalid_plans(content, pack, plans):
    refused(pack(content | {f"{FOLDER}/plans.json": plans}, forged=True), FOLDER)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"models": None},
        {"models": [{}]},
        {"models": []},
        {"files": None},
        {"files": ["plans.json"]},
        {"models": [MODEL | {"checkpoints": [3]}]},
        {"models": [MODEL | {"folds": None}]},
        {"models": [MODEL | {"configuration": 2}]},
        {"models": [MODEL | {"folder": "../elsewhere"}]},
    ],
)
def test_invalid_manifests(content, pack, change):
    manifest = json.dumps(json.loads(content[MANIFEST]) | change).encode()
    refused(pack(content | {MANIFEST: manifest}), "manifest.json: ")


def test_zip_bombs(content, pack):
    zeros = bytes(64 * 2**20)
    refused(pack(content | {f"{FOLDER}/zeros.json": zeros}), "zeros.json: expands from .* zip bomb")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", zeros)
    refused(pack(content | {CHECKPOINT: inner.getvalue()}, forged=True), "data.pkl: expands from")
    many = {f"{FOLDER}/{index}.json": b"" for index in range(2001)}
    refused(pack(content | many), "files in the archive; at most 2000")


def lying_bomb(name: str, method: int) -> bytes:
    """An archive of one file, which says that it holds 1000 bytes."""
    size = 128 * 2**20 + 54321
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, bytes(size))
    return buffer.getvalue().replace(struct.pack("<I", size), struct.pack("<I", 1000))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_bombs_that_lie_about_their_size(content, pack, tmp_path, method):
    inner = lying_bomb("patch.npy", method)
    (tmp_path / "bomb.zip").write_bytes(lying_bomb(MANIFEST, method))
    packed = pack(content | {SAMPLE: inner}, forged=True)
    tracemalloc.start()
    try:
        refused(tmp_path / "bomb.zip", "manifest.json: (damaged|neither stored nor deflated)")
        refused(packed, "sample.npz: (not an array file|patch.npy: neither stored nor deflated)")
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_files_that_share_their_bytes(tmp_path):
    path = tmp_path / "overlapping.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, bytes(10**7))
        info = archive.getinfo(MANIFEST)
        for index in range(100):  # as many names for the same bytes
            twin = copy.copy(info)
            twin.filename = twin.orig_filename = f"{FOLDER}/{index}.json"
            archive.filelist.append(twin)
    refused(path, "as a zip bomb does")


def test_files_that_are_not_archives(content, pack, tmp_path):
    path = pack(content)
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, "not a zip archive, or cut short")
    refused(tmp_path / "missing.zip", "no such file; remedy")
    refused(tmp_path, "a folder; remedy")


def test_the_command(content, pack, capsys, tmp_path):
    assert main(["verify", str(pack(content))]) == 0
    out = capsys.readouterr().out
    assert "2 checkpoints load without running code" in out
    assert "logits differ by 0 of the largest" in out
    digest = hashlib.sha256((tmp_path / "tampered.zip").read_bytes()).hexdigest()
    assert f"SHA-256: {digest}\n" in out
    assert main(["verify", str(pack(content | {CHECKPOINT: b"x"}))]) == 1
    assert f"error: {CHECKPOINT}: changed since it was exported" in capsys.readouterr().err
