"""Metadata of an ONNX graph, for those who run it without nnU-Net."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_unifiedloss.export.models import Model


def consumer_metadata(
    model: Model, folds: Sequence[str], mirroring: Sequence[int] | None
) -> dict[str, Any]:
    """Collect everything that is needed to use the graph without nnU-Net.

    Args:
        model: The model.
        folds: The folds in the graph.
        mirroring: The axes along which nnU-Net mirrors, or None.

    Returns:
        Names and values that JSON can hold; docs/export.md explains each.
    """
    plans, dataset = model.read("plans.json"), model.read("dataset.json")
    manager = PlansManager(copy.deepcopy(plans))
    chosen = manager.get_configuration(model.configuration)
    labels = manager.get_label_manager(dataset)
    return {
        "dataset": model.dataset,
        "trainer": model.trainer,
        "configuration": model.configuration,
        "folds": list(folds),
        "channel_names": _channels(dataset, chosen.previous_stage_name, labels.foreground_labels),
        "labels": dataset["labels"],
        "output_channels": _outputs(dataset["labels"], labels.has_regions),
        "regions_class_order": dataset.get("regions_class_order") if labels.has_regions else None,
        "activation": "sigmoid" if labels.has_regions else "softmax",
        "patch_size": list(chosen.patch_size),
        "spacing": list(chosen.spacing),
        "transpose_forward": plans["transpose_forward"],
        "transpose_backward": plans["transpose_backward"],
        "normalization": _normalization(
            chosen, manager.foreground_intensity_properties_per_channel
        ),
        "resampling": _resampling(chosen.configuration),
        "mirroring_axes": None if mirroring is None else list(mirroring),
        "previous_stage": chosen.previous_stage_name,
    }


def _resampling(settings: dict[str, Any]) -> dict[str, Any]:
    """The function with which nnU-Net resamples images and logits, and its arguments."""
    return {
        kind: {
            "function": settings[f"resampling_fn_{name}"],
            **settings[f"resampling_fn_{name}_kwargs"],
        }
        for kind, name in (("image", "data"), ("logits", "probabilities"))
    }


def _channels(dataset: dict[str, Any], stage: str | None, labels: Sequence[int]) -> list[str]:
    images = dataset.get("channel_names") or dataset["modality"]
    return [*images.values(), *(f"{stage}: label {label}" for label in labels if stage is not None)]


def _outputs(labels: dict[str, Any], has_regions: bool) -> list[str]:
    """The name of each output channel, as nnU-Net orders them."""
    names = [name for name in labels if name != "ignore"]
    if has_regions:
        return [name for name in names if labels[name] not in (0, [0])]
    return sorted(names, key=lambda name: int(np.atleast_1d(labels[name])[0]))


def _normalization(chosen: Any, intensities: dict[str, Any]) -> list[dict[str, Any]]:  # noqa: ANN401
    """For each image channel: the scheme, whether only inside the image's mask, and statistics."""
    schemes = zip(chosen.normalization_schemes, chosen.use_mask_for_norm, strict=True)
    return [
        {"scheme": scheme, "use_mask": mask, "intensities": intensities.get(str(index))}
        for index, (scheme, mask) in enumerate(schemes)
    ]
