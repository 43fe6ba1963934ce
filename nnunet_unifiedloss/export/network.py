"""The network of a model, and its output for a sample."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import pydoc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from nnunet_unifiedloss.export.archive import ArchiveError

_MOST_VALUES = 2**20
_ARCHITECTURES = ("dynamic_network_architectures.",)
_PARTS = (*_ARCHITECTURES, "torch.nn.")


def build_network(
    trainer: Any,  # noqa: ANN401 (nnU-Net has no types)
    plans: dict[str, Any],
    dataset: dict[str, Any],
    configuration: str,
) -> nn.Module:
    """Build the network that nnU-Net builds for a prediction.

    Args:
        trainer: The trainer that builds it.
        plans: Content of ``plans.json``.
        dataset: Content of ``dataset.json``.
        configuration: Name of the configuration.
    """
    # trainers of other architectures write into the plans
    manager = PlansManager(copy.deepcopy(plans))
    chosen = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, chosen, dataset)
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    build, described = trainer.build_network_architecture, [manager, chosen]
    if "plans_manager" not in inspect.signature(build).parameters:  # as before nnU-Net 2.8
        names = ("class_name", "init_kwargs", "init_kwargs_req_import")
        described = [getattr(chosen, f"network_arch_{name}") for name in names]
    with contextlib.redirect_stdout(io.StringIO()):
        network: nn.Module = build(*described, channels, heads, enable_deep_supervision=False)
    return network.eval()


def original_network(
    folder: Path, folds: Iterable[str], checkpoint: str
) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """The network of a trained model as nnU-Net's own predictor loads it, and each fold's weights.

    Raises:
        Exception: Whatever would stop ``nnUNetv2_predict``.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with contextlib.redirect_stdout(io.StringIO()):  # it reports every module it inspects
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), tuple(folds), checkpoint)
    network = getattr(predictor.network, "_orig_mod", predictor.network)  # if nnUNet_compile is set
    return network.eval(), predictor.list_of_parameters


def logits_of_folds(
    network: nn.Module, weights: Iterable[dict[str, Tensor]], patch: np.ndarray
) -> Iterator[np.ndarray]:
    """The output of each fold for a patch.

    Args:
        network: The network.
        weights: The weights of each fold.
        patch: (channels, *patch size).

    Yields:
        (classes or regions, *patch size).
    """
    batch = torch.from_numpy(patch.astype(np.float32))[None]
    for each in weights:
        network.load_state_dict(each)
        with torch.inference_mode():
            logits: np.ndarray = network(batch)[0].numpy()
        yield logits


def input_channels(plans: dict[str, Any], dataset: dict[str, Any], configuration: str) -> int:
    """The number of channels that a configuration takes, those of the earlier stage included."""
    manager = PlansManager(plans)
    return int(determine_num_input_channels(manager, configuration, dataset))


def sample_patch(channels: int, shape: Iterable[int]) -> np.ndarray:
    """A patch of smooth noise: no patient's image leaves with a model.

    Returns:
        (channels, *shape), with the mean and variance that nnU-Net normalises images to.

    Example:
        >>> sample_patch(2, (8, 8)).shape, sample_patch(1, (64, 64)).std().round(1)
        ((2, 8, 8), np.float16(1.0))
    """
    noise = np.random.default_rng(0).standard_normal((channels, *shape))
    smooth = np.stack([gaussian_filter(each, 1.5, mode="wrap") for each in noise])
    return np.asarray(smooth / smooth.std(), dtype=np.float16)


def thinned(logits: np.ndarray) -> np.ndarray:
    """Every n-th value along each axis of an output, so that a million values at most are kept.

    Example:
        >>> thinned(np.zeros((3, 40, 56, 40))).shape, thinned(np.zeros((4, 128, 128, 128))).shape
        ((3, 40, 56, 40), (4, 64, 64, 64))
    """
    step = 1
    while logits.size / step ** (logits.ndim - 1) > _MOST_VALUES:
        step += 1
    return logits[(slice(None), *[slice(None, None, step)] * (logits.ndim - 1))]


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two outputs, relative to the largest logit where that is above 1.

    Example:
        >>> relative_difference(np.array([1.0, 20.0]), np.array([1.5, 20.0]))
        0.025
    """
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def check_architecture(plans: dict[str, Any], configuration: str) -> None:
    """Refuse plans that would make nnU-Net import something that is no network.

    nnU-Net imports the names in the plans and calls what it finds, so plans from elsewhere could
    name anything.

    Raises:
        ArchiveError: A class is not of torch or of nnU-Net's architectures.
    """
    chosen = PlansManager(copy.deepcopy(plans)).get_configuration(configuration)
    arguments = chosen.network_arch_init_kwargs
    parts = [arguments[name] for name in chosen.network_arch_init_kwargs_req_import]
    wanted: list[tuple[str, tuple[str, ...]]]
    wanted = [(chosen.network_arch_class_name, _ARCHITECTURES)]
    wanted += [(part, _PARTS) for part in parts if part is not None]
    for name, allowed in wanted:
        # looked up only where the prefix says that torch or nnU-Net's architectures are imported
        known = isinstance(name, str) and name.startswith(allowed)
        cls = pydoc.locate(name) if known else int
        # nnU-Net itself searches its architectures for a network that has moved
        if cls is not None and not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise ArchiveError(
                f"plans.json: {name} is not a network of torch or of nnU-Net's architectures, and "
                "no others are imported here; a model with its own architecture is exported with "
                "--no-verify"
            )
