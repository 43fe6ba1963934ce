"""Patches of the preprocessed images, to compare networks on real data."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_unifiedloss.export.models import Model
from nnunet_unifiedloss.results.trainings import nnunet_folder

_CASES = 2


def real_patches(model: Model) -> list[np.ndarray]:
    """Patches around the labels of some training cases, where they are on this machine.

    Returns:
        Each (channels, *patch size) in float32; empty where there are no preprocessed images.
    """
    manager = PlansManager(copy.deepcopy(model.read("plans.json")))
    chosen = manager.get_configuration(model.configuration)
    try:
        folder = nnunet_folder("nnUNet_preprocessed") / model.dataset / chosen.data_identifier
    except ValueError:
        return []
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    labels = manager.get_label_manager(model.read("dataset.json")).foreground_labels
    stage = labels if chosen.previous_stage_name is not None else []
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = infer_dataset_class(str(folder))(str(folder))
    patches = []
    for case in dataset.identifiers[:_CASES]:
        image, segmentation, *_ = dataset.load_case(case)
        patches.append(_patch(np.array(image), np.array(segmentation), chosen.patch_size, stage))
    return patches


def _patch(
    image: np.ndarray, segmentation: np.ndarray, size: Sequence[int], stage: Sequence[int]
) -> np.ndarray:
    """The patch around the middle of the labels, in the fullest slice if patches are flat."""
    # the reference takes the place of the earlier stage of a cascade
    channels = np.concatenate([image, *[segmentation == label for label in stage]])
    foreground = segmentation[0] > 0
    if len(size) < foreground.ndim:
        fullest = int(foreground.sum(axis=tuple(range(1, foreground.ndim))).argmax())
        channels, foreground = channels[:, fullest], foreground[fullest]
    points = np.argwhere(foreground)
    middle = points.mean(axis=0) if len(points) else np.array(foreground.shape) / 2
    patch = np.zeros((len(channels), *size), dtype=np.float32)
    source, target = [slice(None)], [slice(None)]
    for center, have, want in zip(middle, foreground.shape, size, strict=True):
        start = int(np.clip(center - want / 2, 0, max(0, have - want)))
        length = min(want, have - start)
        source.append(slice(start, start + length))
        target.append(slice(0, length))
    patch[tuple(target)] = channels[tuple(source)]
    return patch
