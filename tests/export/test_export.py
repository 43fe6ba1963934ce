"""Exported models: what is in the archive, that it runs without this package, what goes wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation as keep_largest,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_unifiedloss.cli import main
from nnunet_unifiedloss.export import (
    ArchiveError,
    ExportOptions,
    bundle,
    export_models,
    select_models,
    verify,
)
from nnunet_unifiedloss.export.checkpoints import stock_trainer
from nnunet_unifiedloss.export.network import build_network
from tests.helpers.trained_models import DATASET, TRAINER, make_dataset, make_plans, write_model


def export(results, *configurations, trainer=TRAINER, folds=("0",), **options):
    checkpoints = options.pop("checkpoints", ("checkpoint_final.pth",))
    models = select_models(
        results,
        DATASET,
        configurations or ["2d"],
        trainer=trainer,
        folds=folds,
        checkpoints=checkpoints,
    )
    path = results.parent / "model.zip"
    return export_models(models, path, options=ExportOptions(**options))


def read(result, suffix: str) -> bytes:
    with zipfile.ZipFile(result.path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(suffix)]
        return archive.read(name)


def names(result) -> set[str]:
    with zipfile.ZipFile(result.path) as archive:
        return {name.partition("/")[2] for name in archive.namelist()}


def predict(results: Path, folds=(0,), configuration="2d", **options) -> np.ndarray:
    """nnU-Net's own prediction of an image of noise."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    folder = results / DATASET / f"{TRAINER}__nnUNetPlans__{configuration}"
    predictor.initialize_from_trained_model_folder(str(folder), folds, **options)
    image = np.random.default_rng(1).standard_normal((1, 20, 30, 26)).astype(np.float32)
    return predictor.predict_single_npy_array(image, {"spacing": [1.0, 1.2, 1.0]})


# --- what is in it


@pytest.mark.parametrize("scenario", ["plain", "regions", "ignore"])
def test_a_stock_nnunet_installs_and_runs_it(results, tmp_path, monkeypatch, scenario):
    write_model(results, scenario, folds=(0, 1))
    expected = predict(results, (0, 1))
    result = export(results, folds=("0", "1"))
    assert len(np.unique(expected)) > 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("nnUNet_extTrainer")  # as if this package were not there
    install_model_from_zip_file(str(result.path))
    np.testing.assert_array_equal(predict(tmp_path / "elsewhere", (0, 1)), expected)


def test_checkpoints_are_small_and_load_without_running_code(results):
    folder = write_model(results)
    original = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    result = export(results)
    content = read(result, ".pth")
    exported = torch.load(io.BytesIO(content), weights_only=True)
    assert set(exported) == {
        "network_weights",
        "init_args",
        "inference_allowed_mirroring_axes",
        "trainer_name",
        "trained_by",
    }
    assert exported["trainer_name"] == "nnUNetTrainer"
    assert exported["trained_by"] == TRAINER
    assert exported["inference_allowed_mirroring_axes"] == (0, 1)
    assert exported["network_weights"].keys() == original["network_weights"].keys()
    for key, value in original["network_weights"].items():
        assert torch.equal(exported["network_weights"][key], value)
    size = (folder / "fold_0" / "checkpoint_final.pth").stat().st_size
    assert (result.bytes_before, result.bytes_after) == (size, len(content))
    assert len(content) < 0.7 * size


def test_with_training_state_a_training_goes_on(results, tmp_path):
    write_model(results)
    result = export(results, with_training_state=True)
    (tmp_path / "checkpoint.pth").write_bytes(read(result, ".pth"))
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert checkpoint["logging"]["train_losses"] == [0.5]
    host = nnUNetTrainer(
        make_plans() | {"continue_training": True}, "2d", 0, make_dataset("plain"),
        torch.device("cpu"),
    )  # fmt: skip
    host.network = host.build_network_architecture(
        host.plans_manager, host.configuration_manager, 1, 3, True
    )
    host.optimizer, _ = host.configure_optimizers()
    host.was_initialized = True
    host.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert (host.current_epoch, host._best_ema) == (1, 0.25)
    assert host.optimizer.state_dict()["state"]


def test_manifest_and_what_trained_it(results):
    folder = write_model(results)
    result = export(results)
    assert hashlib.sha256(result.path.read_bytes()).hexdigest() == result.sha256
    manifest = json.loads(read(result, "manifest.json"))
    with zipfile.ZipFile(result.path) as archive:
        for name, digest in manifest["files"].items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest
        assert set(archive.namelist()) - set(manifest["files"]) == {
            f"{DATASET}/{folder.name}/manifest.json"
        }
    (model,) = manifest["models"]
    origin = model["trained_by"]
    assert origin["trainer"] == TRAINER
    assert origin["loss"] == "UnifiedFocalLoss"
    assert origin["parameters"]["delta"] == 0.7
    assert origin["parameters"]["gamma"] == 0.5  # the default
    assert origin["settings"] == {"num_epochs": 2, "torch_version": torch.__version__}
    fingerprint = (folder / "dataset_fingerprint.json").read_bytes()
    assert origin["fingerprint"]["sha256"] == hashlib.sha256(fingerprint).hexdigest()
    assert torch.__version__.startswith(manifest["exported_with"]["torch"])


def test_nothing_of_this_machine_leaves_with_it(results):
    write_model(results)
    result = export(results)
    assert not {name for name in names(result) if "debug" in name or "log" in name}
    with zipfile.ZipFile(result.path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert b"/home/somebody" not in content, name
            assert str(results).encode() not in content, name
    summary = json.loads(read(result, "summary.json"))
    assert summary["metric_per_case"][0]["prediction_file"] == "case_00.nii.gz"


def test_equal_models_give_equal_archives(results):
    write_model(results)
    assert export(results).sha256 == export(results).sha256


def test_missing_files_of_nnunet_do_not_break_it(results):
    folder = write_model(results)
    for name in ("progress.png", "validation/summary.json", "debug.json"):
        (folder / "fold_0" / name).unlink()
    (folder / "dataset_fingerprint.json").unlink()
    result = export(results)
    assert "Cross-validation: none (no fold has" in result.card
    assert verify(result.path).checkpoints == 1


def test_metrics_of_many_rare_labels_are_no_zip_bomb(results):
    nothing = dict.fromkeys(("Dice", "IoU"), float("nan")) | dict.fromkeys(("FN", "FP", "TP"), 0)
    path = write_model(results) / "fold_0" / "validation" / "summary.json"
    cases = [{"metrics": {str(label): nothing for label in range(1, 118)}}] * 1200
    path.write_text(json.dumps({"metric_per_case": cases}))
    assert len(read(export(results), "summary.json")) > 16 * 2**20


def test_several_configurations_folds_and_checkpoints(results):
    chosen = ("checkpoint_best.pth", "checkpoint_final.pth")
    for configuration in ("2d", "3d_fullres"):
        write_model(results, configuration=configuration, folds=(0, "all"), checkpoints=chosen)
    result = export(results, "2d", "3d_fullres", folds=("0", "all"), checkpoints=chosen)
    assert verify(result.path).checkpoints == 8
    for configuration in ("2d", "3d_fullres"):
        folder = f"{TRAINER}__nnUNetPlans__{configuration}"
        for fold in ("fold_0", "fold_all"):
            assert {f"{folder}/{fold}/{name}" for name in chosen} <= names(result)
        assert {f"{folder}/MODEL_CARD.md", f"{folder}/manifest.json"} <= names(result)
    assert "-chk checkpoint_best.pth" in result.card


def test_a_cascade_brings_its_first_stage(results):
    for configuration in ("3d_lowres", "3d_cascade_fullres"):
        write_model(results, configuration=configuration)
    result = export(results, "3d_cascade_fullres")
    assert verify(result.path).checkpoints == 2
    first, second = [line for line in result.card.splitlines() if "nnUNetv2_predict" in line]
    assert "-c 3d_lowres" in first
    assert "-prev_stage_predictions <predictions 3d_lowres>" in second


def write_evaluation(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "postprocessing.pkl").write_bytes(content)
    (folder / "postprocessing.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps(make_summary_of_nothing()))


def make_summary_of_nothing() -> dict:
    return {"metric_per_case": []}


def test_postprocessing_and_ensembles_come_along(results):
    for configuration in ("2d", "3d_fullres"):
        write_model(results, configuration=configuration)
    folder = results / DATASET
    model = f"{TRAINER}__nnUNetPlans__2d"
    arguments = ([keep_largest], [{"labels_or_regions": np.int64(1)}])
    write_evaluation(folder / model / "crossval_results_folds_0", pickle.dumps(arguments))
    both = f"ensemble___{model}___{TRAINER}__nnUNetPlans__3d_fullres___0"
    other = f"ensemble___{model}___nnUNetTrainer__nnUNetPlans__2d___0"
    write_evaluation(folder / "ensembles" / both, pickle.dumps((print, [])))
    write_evaluation(folder / "ensembles" / other, pickle.dumps(arguments))
    result = export(results, "2d", "3d_fullres")
    assert pickle.loads(read(result, "_0/postprocessing.pkl")) == (
        [keep_largest],
        [{"labels_or_regions": 1}],
    )
    assert f"ensembles/{both}/postprocessing.json" in names(result)
    assert not {name for name in names(result) if other in name}
    assert "postprocessing.pkl is left out" in result.card  # it would have called print
    assert f"-pp_pkl_file {DATASET}/{model}/crossval_results_folds_0/postproc" in result.card
    verify(result.path)


# --- which trainer the checkpoints name


def test_an_architecture_that_nnunet_brings_keeps_its_trainer(results):
    trainer = "nnUNetTrainerUnifiedFocal_BN"
    write_model(results, trainer=trainer)
    result = export(results, trainer=trainer)
    exported = torch.load(io.BytesIO(read(result, ".pth")), weights_only=True)
    assert exported["trainer_name"] == "nnUNetTrainerBN"
    assert "The network is that of nnUNetTrainerBN (in nnunetv2.training." in result.card
    assert exported["trained_by"] == trainer


def test_an_architecture_of_ones_own_needs_its_trainer(results, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    (own / "own_network.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerOwn(nnUNetTrainer):\n"
        "    @staticmethod\n"
        "    def build_network_architecture(plans_manager, *others, **keywords):\n"
        "        return nnUNetTrainer.build_network_architecture(\n"
        "            plans_manager, *others, **keywords)\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(own))
    write_model(results, trainer="nnUNetTrainerOwn")
    result = export(results, trainer="nnUNetTrainerOwn")
    exported = torch.load(io.BytesIO(read(result, ".pth")), weights_only=True)
    assert exported["trainer_name"] == "nnUNetTrainerOwn"
    assert "whoever predicts needs that trainer" in result.card
    verify(result.path)
    monkeypatch.delenv("nnUNet_extTrainer")
    with pytest.raises(ArchiveError, match="does not find the trainer nnUNetTrainerOwn"):
        verify(result.path)


def test_trainers_with_the_signature_of_earlier_nnunets():
    class Early(nnUNetTrainer):
        @staticmethod
        def build_network_architecture(
            architecture_class_name,
            arch_init_kwargs,
            arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision=True,
        ):
            return torch.nn.Conv2d(num_input_channels, num_output_channels, len(arch_init_kwargs))

    network = build_network(Early, make_plans(), make_dataset("plain"), "2d")
    arguments = make_plans()["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert network.weight.shape == (3, 1, len(arguments), len(arguments))
    assert stock_trainer(Early) is Early


def test_a_trainer_that_differs_from_the_folder_is_reported(results):
    folder = write_model(results, folds=(0, 1))
    path = folder / "fold_1" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save(checkpoint | {"trainer_name": "nnUNetTrainerDiceLoss"}, path)
    result = export(results, folds=("0", "1"))
    assert "fold 1, checkpoint_final.pth: trained by nnUNetTrainerDiceLoss, not by" in result.card
    assert "whoever predicts needs" not in result.card
    assert "trained by nnUNet" not in export(results).card


def test_a_model_that_was_installed_is_exported_again(results, tmp_path, monkeypatch):
    write_model(results)
    export(results).path.rename(tmp_path / "first.zip")
    again = tmp_path / "again" / "results"
    again.mkdir(parents=True)
    monkeypatch.setenv("nnUNet_results", str(again))
    install_model_from_zip_file(str(tmp_path / "first.zip"))
    exported = torch.load(io.BytesIO(read(export(again), ".pth")), weights_only=True)
    assert exported["trained_by"] == TRAINER


def test_predictions_that_differ_are_not_exported(results, monkeypatch):
    write_model(results)
    slim = bundle.slim

    def altered(*arguments, **keywords):
        checkpoint = slim(*arguments, **keywords)
        next(iter(checkpoint["network_weights"].values())).mul_(1 + 1e-3)
        return checkpoint

    monkeypatch.setattr(bundle, "slim", altered)
    with pytest.raises(ArchiveError, match="predictions on the stored sample are not what"):
        export(results)
    assert list(results.parent.glob("*zip*")) == []
    result = export(results, verify=False)
    assert result.verification is None
    assert "Not verified (--no-verify)" in result.card
    assert "--no-verify" in verify(result.path).notes[0]


# --- what goes wrong


def test_missing_models_are_named(results):
    folder = write_model(results, folds=(0, 2))
    with pytest.raises(ValueError, match=r"fold_1: this fold is not trained.*-f 0 2"):
        export(results, folds=("0", "1", "2"))
    with pytest.raises(ValueError, match=rf"no such model; trained on .*-tr {TRAINER} .*-c 2d"):
        export(results, trainer="nnUNetTrainer")
    with pytest.raises(ValueError, match=r"checkpoint_best.pth is missing .*checkpoint_final.pth"):
        export(results, checkpoints=("checkpoint_best.pth",))
    with pytest.raises(ValueError, match=r"'\.\./x': expected a plain name"):
        export(results, checkpoints=("../x",))
    with pytest.raises(ValueError, match=r"-chk x.pt: expected .* ending in .pth"):
        export(results, checkpoints=("x.pt",))
    (folder / "plans.json").unlink()
    with pytest.raises(ValueError, match=r"plans.json is missing.*remedy"):
        export(results)
    assert list(results.parent.glob("*zip*")) == []


class Unknown:
    """An object in a checkpoint that no other program can load."""


def spoil(checkpoint: dict, way: str) -> None:
    weights = checkpoint["network_weights"]
    if way == "compiled":
        checkpoint["network_weights"] = {f"_orig_mod.{key}": weights[key] for key in weights}
    elif way == "diverged":
        for value in weights.values():
            value.fill_(float("nan"))
    elif way == "no configuration":
        del checkpoint["init_args"]["configuration"]
    else:
        checkpoint["init_args"]["more"] = Unknown()


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("compiled", r"folds 0 1: nnU-Net itself cannot run it .*remedy: choose others with -f"),
        ("diverged", r"folds 0 1: predicts what is not a number, .*remedy: choose others with -f"),
        ("no configuration", r"fold_1/checkpoint_final.pth: not a checkpoint of nnU-Net"),
        ("more", r"fold_1/checkpoint_final.pth: init_args.more holds a .*Unknown.*remedy"),
    ],
)
def test_a_checkpoint_that_cannot_be_exported_is_named(results, way, reason):
    path = write_model(results, folds=(0, 1)) / "fold_1" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    spoil(checkpoint, way)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=reason):
        export(results, folds=("0", "1"))
    assert list(results.parent.glob("*zip*")) == []


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"cnowhere\nX\n.", b"cos\nnothing\n."])
def test_a_damaged_checkpoint_is_named(results, content):
    path = write_model(results) / "fold_0" / "checkpoint_final.pth"
    whole = path.read_bytes()
    for damaged in (content, whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"fold_0/checkpoint_final.pth: not readable.*remedy"):
            export(results)


def test_checkpoints_may_have_any_name(results):
    fold = write_model(results) / "fold_0"
    odd = ("patch.pth", "file.pth")  # NumPy's argument, and the name of the patch in the sample
    for name in odd:
        (fold / name).write_bytes((fold / "checkpoint_final.pth").read_bytes())
    assert verify(export(results, checkpoints=odd).path).checkpoints == 2


def test_the_target_must_be_a_file_in_a_folder(results, tmp_path):
    write_model(results)
    models = select_models(results, DATASET, ["2d"], trainer=TRAINER, folds=["0"])
    targets = [tmp_path, tmp_path / "missing" / "model.zip"]
    if hasattr(os, "mkfifo"):
        targets.append(tmp_path / "pipe")
        os.mkfifo(targets[-1])
    for target in targets:
        with pytest.raises(ValueError, match=r"-o .*: expected a file in a folder"):
            export_models(models, target)


@pytest.mark.parametrize("moment", ["checkpoint_final", "predictions of", "checksums"])
def test_an_interruption_keeps_the_earlier_archive(results, moment):
    write_model(results)
    target = results.parent / "model.zip"
    target.write_text("an earlier archive")
    models = select_models(results, DATASET, ["2d"], trainer=TRAINER, folds=["0"])

    def interrupt(doing):
        if moment in doing:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_models(models, target, progress=interrupt)
    assert target.read_text() == "an earlier archive"
    assert {path.name for path in results.parent.glob("*")} == {"results", "model.zip"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without telling it")
def test_a_termination_signal_keeps_the_earlier_archive(results, monkeypatch):
    write_model(results)
    target = results.parent / "model.zip"
    command = ["export", "-d", "4", "-c", "2d", "-tr", TRAINER, "-f", "0", "-o", str(target)]
    original = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(bundle, "original_network", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == original
    assert list(results.parent.glob("*")) + list(results.parent.glob(".*zip*")) == [results]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that can be killed is forked")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_killed_export_leaves_no_half_archive(results):
    write_model(results)
    target = results.parent / "model.zip"
    models = select_models(results, DATASET, ["2d"], trainer=TRAINER, folds=["0"])

    def kill(doing):
        if "predictions of" in doing:  # the checkpoint is written, much is still missing
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            export_models(models, target, progress=kill)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not target.exists()
    assert len(list(results.parent.glob(".model.zip.*"))) == 1  # only the draft was there
