"""ONNX graphs: they compute what torch does, say how they are used, and segment as nnU-Net does."""

from __future__ import annotations

import builtins
import hashlib
import json
import pickle
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from scipy.ndimage import gaussian_filter

from nnunet_unifiedloss.export import (
    ArchiveError,
    ExportOptions,
    export_models,
    select_models,
    verify,
)
from nnunet_unifiedloss.export.metadata import consumer_metadata
from nnunet_unifiedloss.export.network import original_network
from nnunet_unifiedloss.export.onnx_graph import export_graph
from nnunet_unifiedloss.export.patches import real_patches
from nnunet_unifiedloss.training.install import trainers_folder
from tests.helpers.trained_models import (
    CONFIGURATIONS,
    DATASET,
    LABELS,
    TRAINER,
    configuration,
    make_plans,
    write_model,
)

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SCRIPT = Path(__file__).parents[2] / "examples" / "onnx_sliding_window.py"


def export(results, configuration="2d", folds=("0",), onnx="ensemble"):
    models = select_models(results, DATASET, [configuration], trainer=TRAINER, folds=folds)
    return export_models(models, results.parent / "model.zip", options=ExportOptions(onnx=onnx))


def graphs(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.endswith(".onnx")]
        return {Path(name).name: archive.read(name) for name in found}


def loaded(results, folds=(0,), configuration="2d") -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    folder = results / DATASET / f"{TRAINER}__nnUNetPlans__{configuration}"
    predictor.initialize_from_trained_model_folder(str(folder), folds, "checkpoint_final.pth")
    return predictor


def logits_of(predictor, batch) -> np.ndarray:
    """The mean over the folds of what the networks of nnU-Net's own predictor compute."""
    outputs = []
    for weights in predictor.list_of_parameters:
        predictor.network.load_state_dict(weights)
        with torch.inference_mode():
            outputs.append(predictor.network.eval()(torch.from_numpy(batch)).numpy())
    return np.mean(outputs, axis=0)


@pytest.fixture(scope="module")
def module_results(tmp_path_factory) -> Iterator[Path]:
    """An empty folder for the results of the models that tests share."""
    folder = tmp_path_factory.mktemp("shared") / "results"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder))
        patch.setenv("nnUNet_extTrainer", str(trainers_folder()))
        patch.delenv("nnUNet_preprocessed", raising=False)
        yield folder


@pytest.fixture(scope="module")
def exported(module_results) -> Path:
    """The archive of a model of two regions, with unusual plans."""
    plans = make_plans()
    chosen = {"spacing": [3.0, 0.5], "normalization_schemes": ["CTNormalization"]}
    plans["configurations"] = {"2d": configuration(2, **chosen)}
    plans["transpose_forward"], plans["transpose_backward"] = [1, 0, 2], [1, 0, 2]
    write_model(module_results, "regions", plans=plans)
    return export(module_results).path


@pytest.mark.parametrize(("name", "kind"), [("2d", "folds"), ("3d_fullres", "ensemble")])
def test_a_graph_computes_what_torch_does(results, name, kind):
    write_model(results, "regions", name, folds=(0, 1))
    result = export(results, name, ("0", "1"), kind)
    expected = {"checkpoint_final.onnx": (0, 1)}
    if kind == "folds":
        expected = {f"checkpoint_final_fold_{fold}.onnx": (fold,) for fold in (0, 1)}
    found = graphs(result.path)
    assert found.keys() == expected.keys()
    size = CONFIGURATIONS[name]["patch_size"]
    for file, folds in expected.items():
        onnx.checker.check_model(onnx.load_from_string(found[file]), full_check=True)
        session = onnxruntime.InferenceSession(found[file], providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == ["batch", 1, *size]
        for count in (1, 3):
            batch = np.random.default_rng(count).standard_normal((count, 1, *size))
            batch = batch.astype(np.float32)
            (logits,) = session.run(["logits"], {"image": batch})
            assert np.abs(logits - logits_of(loaded(results, folds, name), batch)).max() < 1e-4
    assert verify(result.path).graph_difference < 1e-4


def test_a_graph_that_was_changed_is_refused(exported, tmp_path):
    path = tmp_path / "changed.zip"
    with zipfile.ZipFile(exported) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in files if name.endswith(".onnx")]
    (manifest,) = [name for name in files if name.endswith("manifest.json")]
    graph = onnx.load_from_string(files[name])
    for weights in graph.graph.initializer:
        if "seg_layers" in weights.name:  # those of earlier layers are normalised away
            changed = onnx.numpy_helper.to_array(weights) * np.float32(1.01)
            weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    for content, reason in (
        (graph.SerializeToString(), "not what they were"),
        (b"no graph", "onnxruntime cannot run it"),
    ):
        record = json.loads(files[manifest])
        record["files"][name] = hashlib.sha256(content).hexdigest()
        forged = files | {name: content, manifest: json.dumps(record).encode()}
        with zipfile.ZipFile(path, "w") as archive:
            for each, value in forged.items():
                archive.writestr(each, value)
        with pytest.raises(ArchiveError, match=reason):
            verify(path)


def test_a_graph_says_how_it_is_used_and_not_where_it_was_made(exported, module_results):
    (content,) = graphs(exported).values()
    entries = onnx.load_from_string(content).metadata_props
    found = {entry.key: json.loads(entry.value) for entry in entries}
    assert found["labels"] == LABELS["regions"]
    assert found["output_channels"] == ["hippocampus", "anterior"]
    assert found["regions_class_order"] == [2, 1]
    assert (found["activation"], found["spacing"]) == ("sigmoid", [3.0, 0.5])
    assert (found["channel_names"], found["mirroring_axes"]) == (["MRI"], [0, 1])
    assert found["transpose_forward"] == [1, 0, 2]
    (normalization,) = found["normalization"]
    assert normalization["scheme"] == "CTNormalization"
    assert normalization["intensities"]["percentile_99_5"] == 5.0
    assert found["resampling"]["image"]["order"] == 3
    assert found["resampling"]["logits"]["order"] == 1
    assert found["patch_size"] == [24, 20]
    for secret in (b"site-packages", b"nnunet_unifiedloss/", str(module_results).encode()):
        assert secret not in content


def test_the_second_stage_of_a_cascade_names_its_channels(results):
    for name in ("3d_lowres", "3d_cascade_fullres"):
        write_model(results, "ignore", name)
    _, model = select_models(results, DATASET, ["3d_cascade_fullres"], trainer=TRAINER, folds=["0"])
    found = consumer_metadata(model, ["0"], None)
    assert found["channel_names"] == ["MRI", "3d_lowres: label 1", "3d_lowres: label 2"]
    assert found["output_channels"] == ["background", "anterior", "posterior"]
    assert (found["previous_stage"], found["mirroring_axes"]) == ("3d_lowres", None)


def test_patches_are_of_preprocessed_images(results, tmp_path, monkeypatch):
    write_model(results)
    (model,) = select_models(results, DATASET, ["2d"], trainer=TRAINER, folds=["0"])
    assert real_patches(model) == []
    folder = tmp_path / "preprocessed" / DATASET / "nnUNetPlans_2d"
    folder.mkdir(parents=True)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert real_patches(model) == []
    image = np.random.default_rng(0).standard_normal((1, 5, 18, 30)).astype(np.float32)
    segmentation = np.zeros((1, 5, 18, 30), np.int8)
    segmentation[0, 3, 2:9, 20:29] = 1
    for case in "abc":
        np.savez(folder / f"{case}.npz", data=image, seg=segmentation)
        (folder / f"{case}.pkl").write_bytes(pickle.dumps({}))
    first, second = real_patches(model)
    np.testing.assert_array_equal(first, second)
    # the fullest slice; padded at the end where it is smaller than the patch
    np.testing.assert_array_equal(first[:, :18], image[:, 3, :, 10:30])
    assert first.shape == (1, 24, 20)


def test_without_the_extra_it_is_refused_at_once(results, monkeypatch):
    write_model(results)
    original = builtins.__import__

    def missing(name, *arguments, **keywords):
        if name == "onnxscript":
            raise ImportError("No module named 'onnxscript'", name=name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"needs onnxscript; remedy: pip install .*\[onnx\]"):
        export(results)


def test_a_network_that_cannot_be_written_is_named():
    class Broken(torch.nn.Module):
        def forward(self, image):
            raise ArithmeticError("for this shape")

    with pytest.raises(RuntimeError, match=r"cannot write this network.*remedy: .* without --onnx"):
        export_graph(Broken(), (1, 8, 8), {})


# --- the example of the documentation

SCENES = {
    "thick slices": ("plain", "3d_fullres", {}, (3.6, 1.0, 1.2)),
    "resampled in all directions": ("ignore", "3d_fullres", {"spacing": [1.3] * 3}, (1, 0.9, 1)),
    "slices, regions, mask": ("regions", "2d", {"use_mask_for_norm": [True]}, (2.5, 1.0, 0.8)),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if index else [])
        for index, name in enumerate(SCENES)
    ],
)
def scene(request, module_results) -> tuple[Path, np.ndarray]:
    """The folder of a graph and an image, and nnU-Net's segmentation."""
    scenario, name, settings, spacing = SCENES[request.param]
    plans = make_plans()
    plans["configurations"] = {name: configuration(2 if name == "2d" else 3, **settings)}
    plans["transpose_forward"], plans["transpose_backward"] = [2, 0, 1], [1, 2, 0]
    results = module_results / request.param.replace(" ", "_")
    results.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(results))
        write_model(results, scenario, name, plans=plans)
    (model,) = select_models(results, DATASET, [name], trainer=TRAINER, folds=["0"])
    network, weights = original_network(model.folder, ["0"], "checkpoint_final.pth")
    network.load_state_dict(weights[0])
    channels_and_size = (1, *plans["configurations"][name]["patch_size"])
    metadata = consumer_metadata(model, ["0"], tuple(range(len(channels_and_size) - 1)))
    (results / "model.onnx").write_bytes(export_graph(network, channels_and_size, metadata))
    array = smooth_image()
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(results / "image_0000.nii.gz"))
    predictor = loaded(results, configuration=name)
    return results, predictor.predict_single_npy_array(array[None], {"spacing": list(spacing)})


def test_the_example_segments_as_nnunet_does(scene):
    folder, expected = scene
    segment = runpy.run_path(str(SCRIPT))["segment"]
    found = segment(str(folder / "model.onnx"), [str(folder / "image_0000.nii.gz")])
    assert found.shape == expected.shape
    # random weights decide by a hair's breadth, and nnU-Net adds up in half precision
    assert (found != expected).mean() < 0.005
    assert 0.01 < (expected > 0).mean() < 0.99


@pytest.mark.parametrize("scene", ["slices, regions, mask"], indirect=True)
def test_the_example_is_a_command_without_torch(scene):
    folder, expected = scene
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "model.onnx", "out.nii.gz"]
    done = subprocess.run(
        [*command, "image_0000.nii.gz"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    imported = {line.rpartition("| ")[2].strip() for line in done.stderr.splitlines()}
    assert "onnxruntime" in imported
    assert not imported & {"torch", "nnunetv2", "nnunet_unifiedloss"}
    image, found = (sitk.ReadImage(str(folder / n)) for n in ("image_0000.nii.gz", "out.nii.gz"))
    assert found.GetSpacing() == pytest.approx(image.GetSpacing())
    assert (sitk.GetArrayFromImage(found) != expected).mean() < 0.005


def smooth_image() -> np.ndarray:
    """Blobs, with a dark margin that nnU-Net crops."""
    noise = np.random.default_rng(3).standard_normal((14, 34, 30))
    image = gaussian_filter(noise, 1.5)
    inside = np.zeros_like(image)
    inside[1:-1, 4:-2, 3:] = 1
    return (image / image.std() * inside).astype(np.float32)
