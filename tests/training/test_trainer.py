"""The trainer's part: nnU-Net's plans and labels in, the right loss out."""

from __future__ import annotations

import copy
import inspect
import os
from typing import ClassVar

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_unifiedloss import trainers
from nnunet_unifiedloss.losses import BoundaryLoss, UnifiedFocalLoss
from nnunet_unifiedloss.training.names import HOST_DEFAULTS
from nnunet_unifiedloss.training.scales import scale_of
from nnunet_unifiedloss.training.trainer import LossTrainer, RecordedLoss

PATCH = (16, 16, 16)


def make_trainer(
    name="nnUNetTrainerUnifiedFocal", *, regions=False, ignore=False, batch_dice=True, tmp_path=None
):
    """A trainer on plans made by hand, without data."""
    labels = (
        {"background": 0, "whole": [1, 2], "core": 2}
        if regions
        else {"background": 0, "a": 1, "b": 2}
    )
    labels |= {"ignore": 3} if ignore else {}
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": labels,
        "numTraining": 1,
        "file_ending": ".nii.gz",
        **({"regions_class_order": [1, 2]} if regions else {}),
    }
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "none",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(PATCH),
        "batch_dice": batch_dice,
        "architecture": architecture,
        "spacing": [1, 1, 1],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
    }
    plans = {
        "dataset_name": "Dataset001_None",
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
        "continue_training": False,
        "image_reader_writer": "SimpleITKIO",
    }
    trainer = getattr(trainers, name)(plans, "3d_fullres", 0, dataset, torch.device("cpu"))
    return trainer


@pytest.fixture(autouse=True)
def _results_folder(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_loss_follows_labels_and_plans(regions, ignore, batch_dice):
    trainer = make_trainer(
        "nnUNetTrainerUnifiedFocal_delta0.7", regions=regions, ignore=ignore, batch_dice=batch_dice
    )
    wrapper = trainer._build_loss()
    assert isinstance(wrapper, DeepSupervisionWrapper)
    assert wrapper.weight_factors == nnUNetTrainer._build_loss(trainer).weight_factors
    loss = wrapper.loss.loss
    assert isinstance(loss, UnifiedFocalLoss)
    assert (loss.delta, loss.regions, loss.batch_dice, loss.ddp) == (
        0.7,
        regions,
        batch_dice,
        False,
    )
    assert loss.ignore_label == (3 if ignore else None)


def test_ranks_without_compile_keep_the_lowest_output_alive(monkeypatch):
    """Under DDP without compile nnU-Net weights it with 1e-6, lest DDP find unused parameters."""
    monkeypatch.setenv("nnUNet_compile", "f")
    trainer = make_trainer()
    trainer.is_ddp = True
    wrapper = trainer._build_loss()
    assert 0 < wrapper.weight_factors[-1] < 1e-5
    assert wrapper.loss.loss.ddp


def test_without_deep_supervision_there_is_no_wrapper():
    trainer = make_trainer("nnUNetTrainerUnifiedFocal_NoDeepSupervision")
    assert isinstance(trainer._build_loss(), RecordedLoss)


def test_the_name_sets_the_schedule_and_the_log_says_what_ran(capsys):
    trainer = make_trainer("nnUNetTrainerUnifiedFocal_gamma0.3_NoMirroring_lr0.02_3epochs_7iters")
    trainer.preprocessed_dataset_folder = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.infer_dataset_class", lambda folder: None
        )
        trainer.initialize()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.initial_lr) == (
        3,
        7,
        0.02,
    )
    assert trainer.optimizer.param_groups[0]["lr"] == 0.02
    assert trainer.lr_scheduler.max_steps == 3
    assert trainer.num_val_iterations_per_epoch == 7
    logged = capsys.readouterr().out
    assert "Loss: UnifiedFocalLoss(" in logged
    assert "weight=0.5, delta=0.6, gamma=0.3, smooth=1e-07" in logged
    assert "Loss scale: 3.57\n" in logged


def test_the_defaults_that_names_leave_out_are_nnunets():
    trainer = make_trainer()
    attributes = ("initial_lr", "num_epochs", "num_iterations_per_epoch")
    assert [getattr(trainer, name) for name in attributes] == list(HOST_DEFAULTS.values())


def test_the_signature_of_the_constructor_is_nnunets():
    assert inspect.signature(LossTrainer.__init__) == inspect.signature(nnUNetTrainer.__init__)


def test_terms_are_logged_for_training_steps_at_full_resolution(capsys):
    trainer = make_trainer()
    wrapper = trainer._build_loss()
    full, half = (
        torch.randn(2, 3, *PATCH, requires_grad=True),
        torch.randn(2, 3, 8, 8, 8, requires_grad=True),
    )
    targets = [torch.ones(2, 1, *PATCH), torch.ones(2, 1, 8, 8, 8)]
    expected = {
        name: term.item()
        for name, term in UnifiedFocalLoss(batch_dice=True).terms(full, targets[0]).items()
    }
    for _ in range(3):
        wrapper([full, half], targets)
    with torch.no_grad():  # validation is not recorded
        wrapper([full * 9, half], targets)
    trainer.on_train_epoch_end([{"loss": 0.5}])
    logged = capsys.readouterr().out
    total = sum(expected.values())
    for name, value in expected.items():
        assert f"{name} {value:.4f} ({value / total:.0%})" in logged
    assert trainer.recorded_loss.pop_means() == {}


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("nnUNetTrainerUnifiedFocal", 3.57),
        ("nnUNetTrainerUnifiedFocal_scale1", 1),
        ("nnUNetTrainerUnifiedFocal_NoDeepSupervision_scale2", 2),
        ("nnUNetTrainerTversky", 1),
    ],
)
def test_the_loss_is_scaled_once_and_its_terms_are_not(name, scale):
    trainer = make_trainer(name)
    scaled = trainer._build_loss()
    loss = trainer.recorded_loss.loss
    logits = [torch.randn(2, 3, *PATCH, requires_grad=True), torch.randn(2, 3, 8, 8, 8)]
    targets = [torch.ones(2, 1, *PATCH), torch.ones(2, 1, 8, 8, 8)]
    if isinstance(scaled, DeepSupervisionWrapper):
        expected = DeepSupervisionWrapper(loss, scaled.weight_factors)(logits, targets)
        value = scaled(logits, targets)
    else:
        expected, value = loss(logits[0], targets[0]), scaled(logits[0], targets[0])
    assert value.item() == pytest.approx(scale * expected.item(), rel=1e-6)
    assert sum(trainer.recorded_loss.pop_means().values()) == pytest.approx(
        loss(logits[0], targets[0]).item(), rel=1e-6
    )


def continued(name, logged, monkeypatch):
    """A trainer that continues the third epoch of a training with this log of scales."""
    trainer = make_trainer(name)
    trainer._build_loss()
    log = trainer.logger.get_checkpoint() | ({"loss_scale": logged} if logged else {})

    def load_checkpoint(self, filename_or_checkpoint):
        self.current_epoch = 2
        self.logger.load_checkpoint(copy.deepcopy(log))

    monkeypatch.setattr(nnUNetTrainer, "load_checkpoint", load_checkpoint)
    trainer.load_checkpoint("checkpoint_latest.pth")
    return trainer


@pytest.mark.parametrize(
    ("name", "logged", "scale"),
    [
        ("nnUNetTrainerUnifiedFocal", [3.57, 3.57], 3.57),
        ("nnUNetTrainerUnifiedFocal", [3.5, 3.5], 3.5),  # the constant of another version
        ("nnUNetTrainerUnifiedFocal", [], 1),  # a version without scales
        ("nnUNetTrainerUnifiedFocal_scale2", [], 2),
        ("nnUNetTrainerTversky", [], 1),
    ],
)
def test_a_continued_training_keeps_its_scale(name, logged, scale, monkeypatch, capsys):
    trainer = continued(name, logged, monkeypatch)
    assert trainer.recorded_loss.scale == scale
    changed = scale != (trainer.set_scale or scale_of(trainer.loss_class))
    shown = f"Loss scale: {scale:g}, as before the interruption"
    assert (shown in capsys.readouterr().out) == changed
    trainer.on_train_epoch_end([{"loss": 0.5}])
    scales = trainer.logger.get_value("loss_scale", step=None)
    assert scales == [*(logged or [1, 1]), scale]


def test_losses_of_one_term_need_no_line(capsys):
    trainer = make_trainer("nnUNetTrainerDice")
    trainer._build_loss()([torch.randn(2, 3, *PATCH)] * 2, [torch.ones(2, 1, *PATCH)] * 2)
    trainer.on_train_epoch_end([{"loss": 0.5}])
    assert "loss terms" not in capsys.readouterr().out


def test_compiled_and_eager_agree():
    loss = UnifiedFocalLoss()
    logits, target = torch.randn(2, 3, *PATCH, requires_grad=True), torch.ones(2, 1, *PATCH)
    with pytest.MonkeyPatch.context() as patch:
        compile_with = torch.compile
        patch.setattr(
            torch, "compile", lambda function: compile_with(function, backend="aot_eager")
        )
        compiled = RecordedLoss(loss, PATCH, compiled=True)
    eager = RecordedLoss(loss, PATCH, compiled=False)
    assert compiled(logits, target).item() == pytest.approx(eager(logits, target).item(), rel=1e-6)
    assert compiled.pop_means() == pytest.approx(eager.pop_means(), rel=1e-6)


@pytest.mark.parametrize("part", ["Plans", "2-1-0.5"])
def test_physical_distances_at_every_resolution(part):
    trainer = make_trainer(f"nnUNetTrainerBoundary_spacing{part}")
    trainer.configuration_manager.configuration["spacing"] = [2, 1, 0.5]
    trainer.enable_deep_supervision = False
    loss = trainer._build_loss()
    for shape in (PATCH, (8, 16, 8)):
        logits, target = torch.randn(2, 3, *shape), torch.ones(2, 1, *shape)
        target[:, :, :3] = 2
        spacing = tuple(s * p / n for s, p, n in zip((2, 1, 0.5), PATCH, shape, strict=True))
        expected = BoundaryLoss(spacing=spacing)(logits, target)
        assert loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-6)


class FakeDataset:
    """nnU-Net's dataset of preprocessed cases, from arrays."""

    loaded: ClassVar[list[str]] = []
    segmentations: ClassVar[dict[str, np.ndarray]] = {}

    def __init__(self, folder, cases):
        self.source_folder = folder

    def load_case(self, case):
        self.loaded.append(case)
        return None, self.segmentations[case][None], None, {}


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    folder = tmp_path / "preprocessed" / "plans_3d"
    folder.mkdir(parents=True)
    FakeDataset.loaded.clear()
    FakeDataset.segmentations = {
        "a": np.array([[-1, 0, 0, 0], [0, 1, 1, 2]]),
        "b": np.array([[0, 0, 0, 0], [3, 3, 3, 2]]),
        "not for training": np.full((9, 9), 2),
    }
    for case in FakeDataset.segmentations:
        (folder / f"{case}_seg.b2nd").touch()
    monkeypatch.setattr(
        "nnunet_unifiedloss.training.trainer.infer_dataset_class", lambda folder: FakeDataset
    )
    monkeypatch.setattr(LossTrainer, "do_split", lambda self: (["a", "b"], ["not for training"]))
    return folder


def weighted_trainer(preprocessed, name="nnUNetTrainerWeightedCrossEntropy", **options):
    trainer = make_trainer(name, **options)
    trainer.preprocessed_dataset_folder = str(preprocessed)
    trainer._build_loss()
    return trainer.recorded_loss.loss


def test_class_weights_are_inverse_frequencies_of_the_training_cases(preprocessed, capsys):
    weights = weighted_trainer(preprocessed, ignore=True).class_weights
    expected = 1 / np.array([9, 2, 2])  # voxels of labels 0, 1 and 2; 3 is ignored
    assert weights == pytest.approx(expected / expected.mean(), rel=1e-5)
    assert (
        "Voxels of each label in the training cases: {0: 9, 1: 2, 2: 2}" in capsys.readouterr().out
    )


def test_every_region_has_its_own_weights(preprocessed):
    weights = weighted_trainer(preprocessed, regions=True, ignore=True).class_weights
    for pair, (outside, inside) in zip(weights, [(9, 4), (11, 2)], strict=True):
        expected = np.array([1 / outside, 1 / inside])
        assert pair == pytest.approx(expected / expected.mean(), rel=1e-5)


def test_labels_are_counted_once(preprocessed):
    first = weighted_trainer(preprocessed, ignore=True).class_weights
    assert FakeDataset.loaded == ["a", "b"]
    assert weighted_trainer(preprocessed, ignore=True).class_weights == first
    assert FakeDataset.loaded == ["a", "b"]
    os.utime(preprocessed / "b_seg.b2nd", ns=(0, 0))  # preprocessed again
    weighted_trainer(preprocessed, ignore=True)
    assert FakeDataset.loaded == ["a", "b", "b"]
    assert [path.name for path in preprocessed.parent.iterdir() if path.is_file()] == [
        "label_voxels_plans_3d.json"
    ]


@pytest.mark.parametrize("content", ["[]", '{"a": 3}', '{"a": {}}', "{", b"\xff"])
def test_a_broken_file_of_counts_is_made_again(preprocessed, content):
    cache = preprocessed.parent / "label_voxels_plans_3d.json"
    cache.write_bytes(content if isinstance(content, bytes) else content.encode())
    weighted_trainer(preprocessed, ignore=True)
    assert FakeDataset.loaded == ["a", "b"]


def test_a_read_only_folder_does_not_end_the_training(preprocessed, monkeypatch):
    def refuse(*arguments):
        raise PermissionError("read-only")

    monkeypatch.setattr("nnunet_unifiedloss.training.class_weights.write_atomically", refuse)
    assert weighted_trainer(preprocessed, ignore=True).class_weights


def test_weights_in_the_name_override_the_data(preprocessed):
    name = "nnUNetTrainerWeightedCrossEntropy_classWeights0.1-1-4"
    assert weighted_trainer(preprocessed, name).class_weights == (0.1, 1, 4)
    assert FakeDataset.loaded == []


def run_epochs(trainer, last, values):
    """Training epochs up to the last one, without a network; returns the weights of each."""
    trainer.network = torch.nn.Identity()
    trainer.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer)
    used = []
    while trainer.current_epoch < last:
        trainer.on_train_epoch_start()
        loss = trainer.recorded_loss
        used.append(dict(loss.loss.weights))
        means = values[trainer.current_epoch]
        loss.pop_means = lambda means=means, loss=loss: {
            name: value * loss.loss.weights[name] for name, value in means.items()
        }
        trainer.on_train_epoch_end([{"loss": 0.5}])
        trainer.current_epoch += 1
    return used


@pytest.mark.parametrize(
    ("name", "term", "expected"),
    [
        ("nnUNetTrainerDiceBoundary_alpha0.2_5epochs", "Boundary", [0.2, 0.4, 0.6, 0.8, 1.0]),
        ("nnUNetTrainerDiceHausdorff_5epochs", "HausdorffDT", [1, 0.5, 0.25, 0.125, 0.0625]),
    ],
)
def test_schedules_follow_the_epoch_and_survive_an_interruption(name, term, expected, capsys):
    values = [{"Dice": 0.5, term: 2.0**epoch} for epoch in range(5)]

    def start():
        trainer = make_trainer(name)
        trainer.num_epochs = 5
        trainer._build_loss()
        return trainer

    whole = run_epochs(start(), 5, values)
    assert [weights[term] for weights in whole] == pytest.approx(expected)
    assert f"{term} {expected[-1]:.6g}" in capsys.readouterr().out

    interrupted = start()
    run_epochs(interrupted, 3, values)
    continued = start()
    continued.logger.load_checkpoint(copy.deepcopy(interrupted.logger.get_checkpoint()))
    continued.current_epoch = 3
    assert run_epochs(continued, 5, values) == whole[3:]


def test_a_checkpoint_without_our_log_can_be_continued():
    trainer = make_trainer("nnUNetTrainerDiceHausdorff")
    trainer._build_loss()
    trainer.current_epoch = 2
    for key, values in trainer.logger.get_checkpoint().items():
        values += [0.1, 0.1] if key != "loss_terms" else []
    used = run_epochs(trainer, 4, [{}, {}, {"Dice": 1.0, "HausdorffDT": 4.0}, {}])
    assert [weights["HausdorffDT"] for weights in used] == [1, 0.25]
    lengths = {len(values) for values in trainer.logger.get_checkpoint().values()}
    assert len(trainer.logger.get_value("loss_terms", step=None)) == 4
    assert lengths <= {2, 4}
