"""Trained models on disk as nnU-Net leaves them, with random weights: made in a second."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_unifiedloss.training.install import host_look_up
from nnunet_unifiedloss.training.scales import scale_of
from nnunet_unifiedloss.training.trainer import LossTrainer

DATASET = "Dataset004_Hippocampus"
TRAINER = "nnUNetTrainerUnifiedFocal_delta0.7_2epochs"
LABELS = {
    "plain": {"background": 0, "anterior": 1, "posterior": 2},
    "ignore": {"background": 0, "anterior": 1, "posterior": 2, "ignore": 3},
    "regions": {"background": 0, "hippocampus": [1, 2], "anterior": 1},
}
RESAMPLING = {"is_seg": False, "order_z": 0, "force_separate_z": None}


def configuration(dimensions: int, **settings) -> dict:
    conv = f"torch.nn.modules.conv.Conv{dimensions}d"
    norm = f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d"
    return {
        "data_identifier": f"nnUNetPlans_{dimensions}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 24, 20][-dimensions:],
        "median_image_size_in_voxels": [18.0, 30.0, 22.0][-dimensions:],
        "spacing": [1.0] * dimensions,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING | {"order": 3},
        "resampling_fn_seg_kwargs": RESAMPLING | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": RESAMPLING | {"order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "conv_op": conv,
                "kernel_sizes": [[3] * dimensions] * 2,
                "strides": [[1] * dimensions, [2] * dimensions],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": norm,
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
        **settings,
    }


CONFIGURATIONS = {
    "2d": configuration(2),
    "3d_fullres": configuration(3),
    "3d_lowres": configuration(3, spacing=[2.0, 2.0, 2.0], next_stage="3d_cascade_fullres"),
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
}


def make_plans(configurations: dict | None = None) -> dict:
    statistics = {"max": 9.0, "mean": 1.0, "median": 1.0, "min": 0.0, "std": 2.0}
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [18, 30, 22],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": configurations or CONFIGURATIONS,
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": statistics | {"percentile_00_5": 0.0, "percentile_99_5": 5.0}
        },
    }


def make_dataset(scenario: str) -> dict:
    regions = {"regions_class_order": [2, 1]} if scenario == "regions" else {}
    return {
        "name": "Hippocampus",
        "channel_names": {"0": "MRI"},
        "labels": LABELS[scenario],
        "numTraining": 20,
        "file_ending": ".nii.gz",
        "licence": "CC-BY-SA 4.0",
        "dataset": {"case_0": {"images": ["/home/somebody/case_0_0000.nii.gz"]}},
        **regions,
    }


def write_model(
    results: Path,
    scenario: str = "plain",
    configuration: str = "2d",
    folds: tuple[int | str, ...] = (0,),
    *,
    trainer: str = TRAINER,
    checkpoints: tuple[str, ...] = ("checkpoint_final.pth",),
    plans: dict | None = None,
) -> Path:
    """Write a model's folder through nnU-Net's own trainer; ``nnUNet_results`` must name it."""
    plans, dataset = plans or make_plans(), make_dataset(scenario)
    folder = results / DATASET / f"{trainer}__nnUNetPlans__{configuration}"
    for fold in folds:
        (folder / f"fold_{fold}" / "validation").mkdir(parents=True)
        for index, checkpoint in enumerate(checkpoints):
            torch.manual_seed(index + 10 * (9 if fold == "all" else fold))
            host = stepped_trainer(trainer, plans, configuration, fold, dataset)
            host.save_checkpoint(str(folder / f"fold_{fold}" / checkpoint))
        (folder / f"fold_{fold}" / "progress.png").write_bytes(b"not really a picture")
        debug = {"num_epochs": "2", "torch_version": torch.__version__, "hostname": "somewhere"}
        (folder / f"fold_{fold}" / "debug.json").write_text(json.dumps(debug))
        summary = make_summary(scenario, 0 if fold == "all" else fold)
        path = folder / f"fold_{fold}" / "validation" / "summary.json"
        path.write_text(json.dumps(summary))
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1, 1]]}))
    return folder


def stepped_trainer(name, plans, configuration, fold, dataset) -> nnUNetTrainer:
    """A trainer after one step, so that its optimizer and its log have something in them."""
    host = host_look_up(name)(
        plans | {"continue_training": False}, configuration, fold, dataset, torch.device("cpu")
    )
    channels = 1 if configuration != "3d_cascade_fullres" else 3
    host.network = host.build_network_architecture(
        host.plans_manager,
        host.configuration_manager,
        channels,
        host.label_manager.num_segmentation_heads,
        True,
    )
    for layer in host.network.decoder.seg_layers:  # so that every class wins somewhere
        layer.weight.data *= 5
        layer.bias.data *= 0
    host.optimizer, host.lr_scheduler = host.configure_optimizers()
    size = host.configuration_manager.patch_size
    outputs = host.network(torch.randn(2, channels, *size))
    sum(output.square().mean() for output in outputs).backward()
    host.optimizer.step()
    host.logger.log("train_losses", np.float32(0.5), 0)
    if isinstance(host, LossTrainer):
        host.logger.get_checkpoint()["loss_scale"] = [host.set_scale or scale_of(host.loss_class)]
    host._best_ema = np.float32(0.25)
    host.inference_allowed_mirroring_axes = tuple(range(len(size)))
    return host


def make_summary(scenario: str, fold: int) -> dict:
    """Metrics of four cases; of the first one nnU-Net says nothing for the second label."""
    keys = ["(1, 2)", "1"] if scenario == "regions" else ["1", "2"]
    cases = []
    for index in range(4):
        dice = [0.5 + 0.1 * index + 0.01 * fold, math.nan if index == 0 else 0.2 * index]
        metrics = {k: {"Dice": d, "IoU": d / (2 - d)} for k, d in zip(keys, dice, strict=True)}
        name = f"/home/somebody/fold_{fold}/case_{fold}{index}.nii.gz"
        cases.append({"metrics": metrics, "prediction_file": name, "reference_file": name})
    return {"metric_per_case": cases, "mean": {}, "foreground_mean": {"Dice": 0.5}}
