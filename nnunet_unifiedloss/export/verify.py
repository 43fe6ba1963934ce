"""Verify an exported model: names, checksums, loadability, and predictions on the stored sample."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_unifiedloss.export.archive import (
    Archive,
    ArchiveError,
    archive_digest,
    check_expansion,
    open_archive,
)
from nnunet_unifiedloss.export.checkpoints import load_safely, trainer_class
from nnunet_unifiedloss.export.network import (
    build_network,
    check_architecture,
    logits_of_folds,
    relative_difference,
    thinned,
)
from nnunet_unifiedloss.export.postprocessing import check_postprocessing

MANIFEST, SAMPLE, CARD = "manifest.json", "sample.npz", "MODEL_CARD.md"
FORMAT = 1
# Other processors and versions of torch round differently: relative to the largest logit.
TOLERANCE = 1e-3
_SUFFIXES = (".pth", ".json", ".md", ".npz", ".onnx", ".pkl", ".png", ".pdf")


@dataclass
class Verification:
    """Result of a verification.

    Attributes:
        sha256: The digest of the archive itself, to compare with what its author published.
        files: Number of files whose SHA-256 is that of the manifest.
        checkpoints: Number of checkpoints that load without running code.
        difference: Largest difference of a logit from the stored one, relative to the largest
            logit; None where no predictions are stored.
        graph_difference: The same between ONNX graphs and torch; None where no graph was run.
        notes: Parts that could not be verified, each with the reason.
    """

    sha256: str
    files: int = 0
    checkpoints: int = 0
    difference: float | None = None
    graph_difference: float | None = None
    notes: list[str] = field(default_factory=list)


def verify(
    path: Path,
    *,
    tolerance: float = TOLERANCE,
    progress: Callable[[str], object] = lambda _: None,
) -> Verification:
    """Verify an archive that :func:`~nnunet_unifiedloss.export.export_models` wrote.

    Nothing is extracted, no code in it is run, and no class that it names is imported unless it is
    one of torch's or nnU-Net's. The manifest guards against damage; against forgery, compare the
    SHA-256 of the archive itself with the one that its author tells you.

    Args:
        path: The archive.
        tolerance: Allowed difference of the logits, relative to the largest.
        progress: Called with what is being done.

    Returns:
        The result.

    Raises:
        ArchiveError: The archive is refused; the message says why.
        OSError: It cannot be read.
    """
    result = Verification(archive_digest(path))
    with open_archive(path) as archive:
        manifest = _manifest(archive)
        progress("checksums")
        _check_files(archive, manifest["files"], [model["folder"] for model in manifest["models"]])
        result.files = len(manifest["files"])
        for name in sorted(archive.names):
            if name.endswith(".pkl"):
                check_postprocessing(archive.read(name), name)
        checked: set[str] = set()
        for model in manifest["models"]:
            checked |= _check_model(archive, model, result, tolerance, progress)
        for name in archive.names - checked:
            if name.endswith((".pth", ".onnx", ".npz")):
                raise ArchiveError(f"{name}: belongs to no model of the manifest")
        result.checkpoints = sum(name.endswith(".pth") for name in checked)
    return result


def _manifest(archive: Archive) -> dict[str, Any]:
    names = sorted(name for name in archive.names if name.endswith(f"/{MANIFEST}"))
    if not names:
        raise ArchiveError(
            f"no {MANIFEST} in the archive: not written by nnunet-unifiedloss export, or renamed"
        )
    if len({archive.read(name) for name in names}) > 1:
        raise ArchiveError(f"{' and '.join(names)} differ")
    manifest = archive.read_json(names[0])
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArchiveError(f"{names[0]}: not a manifest of format {FORMAT}, the one known here")
    try:
        folders = [model["folder"] for model in manifest["models"]]
        for model in manifest["models"]:
            for name in (model["configuration"], *model["folds"], *model["checkpoints"]):
                if not isinstance(name, str):
                    raise TypeError(f"{name!r} is not text")
        files = dict(manifest["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveError(f"{names[0]}: incomplete ({error!r})") from error
    if sorted(f"{folder}/{MANIFEST}" for folder in folders) != names or files.keys() & set(names):
        raise ArchiveError(f"{names[0]}: stands in other folders than those of its models")
    return manifest


def _check_files(archive: Archive, files: dict[str, str], folders: list[str]) -> None:
    manifests = {name for name in archive.names if name.endswith(f"/{MANIFEST}")}
    missing = sorted(set(files) - archive.names)
    unknown = sorted(archive.names - set(files) - manifests)
    if missing or unknown:
        lines = [f"{name}: missing" for name in missing]
        lines += [f"{name}: not in the manifest" for name in unknown]
        raise ArchiveError("; ".join(lines) + "; a file has been renamed, added or removed")
    for folder in folders:
        if not re.fullmatch(r"Dataset\d{3}_[^/]+/[^/]+__[^/]+__[^/]+", folder):
            raise ArchiveError(f"{folder}: not a folder of a model")
    beside = tuple(f"{folder.partition('/')[0]}/ensembles/" for folder in folders)
    places = (*(f"{folder}/" for folder in folders), *beside)
    for name, digest in files.items():
        if not name.startswith(places) or not name.endswith(_SUFFIXES):
            raise ArchiveError(f"{name}: not a file of an exported model")
        if hashlib.sha256(archive.read(name)).hexdigest() != digest:
            raise ArchiveError(f"{name}: changed since it was exported (SHA-256 differs)")


def _check_model(
    archive: Archive,
    model: dict[str, Any],
    result: Verification,
    tolerance: float,
    progress: Callable[[str], object],
) -> set[str]:
    """Check a configuration; returns the files that were loaded."""
    folder = model["folder"]
    stored = f"{folder}/{SAMPLE}" in archive.names
    sample = _read_sample(archive, f"{folder}/{SAMPLE}") if stored else None
    checked = {f"{folder}/{SAMPLE}"}
    for checkpoint in model["checkpoints"]:
        network, logits = None, []
        for index, fold in enumerate(model["folds"]):
            name = f"{folder}/fold_{fold}/{checkpoint}"
            progress(name)
            content = load_safely(archive.read(name), name)
            checked.add(name)
            if sample is None:
                continue
            network = network or _network(archive, folder, model["configuration"], content)
            try:
                (found,) = logits_of_folds(network, [content["network_weights"]], sample["patch"])
                expected = sample[checkpoint][index]
                difference = _difference(thinned(found), expected, name, tolerance)
            except ArchiveError:
                raise
            except Exception as error:  # torch and NumPy raise various errors
                raise ArchiveError(f"{name}: does not fit the network ({error})") from error
            result.difference = max(result.difference or 0.0, difference)
            logits.append(found)
        checked |= _check_graphs(archive, model, Path(checkpoint).stem, sample, logits, result)
    if sample is None:
        result.notes.append(f"{folder}: no predictions are stored, as with export --no-verify")
    return checked


def _read_sample(archive: Archive, name: str) -> dict[str, np.ndarray]:
    content = archive.read(name)
    check_expansion(content, name)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # damaged content can raise anything
        raise ArchiveError(f"{name}: not an array file ({error})") from error


def _network(archive: Archive, folder: str, configuration: str, checkpoint: dict[str, Any]) -> Any:  # noqa: ANN401
    plans = archive.read_json(f"{folder}/plans.json")
    dataset = archive.read_json(f"{folder}/dataset.json")
    try:
        check_architecture(plans, configuration)
        trainer = trainer_class(checkpoint["trainer_name"])
        return build_network(trainer, plans, dataset, configuration)
    except ArchiveError:
        raise
    except Exception as error:  # wrong plans can raise anything
        raise ArchiveError(f"{folder}: nnU-Net cannot build the network ({error})") from error


def _difference(found: np.ndarray, stored: np.ndarray, name: str, tolerance: float) -> float:
    """The largest difference relative to the largest logit, refused beyond the tolerance."""
    if found.shape != stored.shape:
        raise ArchiveError(f"{name}: predicts {found.shape} where {stored.shape} is expected")
    difference = relative_difference(found, stored)
    if not difference <= tolerance:  # refuses NaN, too
        raise ArchiveError(
            f"{name}: its predictions on the stored sample are not what they were: the logits "
            f"differ by {difference:.2g} of the largest, where {tolerance:.2g} is allowed"
        )
    return difference


def _check_graphs(
    archive: Archive,
    model: dict[str, Any],
    stem: str,
    sample: dict[str, np.ndarray] | None,
    logits: list[np.ndarray],
    result: Verification,
) -> set[str]:
    """Compare the ONNX graphs of a checkpoint with what torch predicts."""
    folder = model["folder"]
    names = {f"{folder}/onnx/{stem}.onnx": list(range(len(logits)))}
    names |= {f"{folder}/onnx/{stem}_fold_{f}.onnx": [i] for i, f in enumerate(model["folds"])}
    present = {name: folds for name, folds in names.items() if name in archive.names}
    if present and sample is not None:
        if importlib.util.find_spec("onnxruntime") is None:
            result.notes.append(f"{folder}/onnx: not run, as onnxruntime is not installed")
            return set(present)
        from nnunet_unifiedloss.export.onnx_graph import GRAPH_TOLERANCE, run_graph

        for name, folds in present.items():
            expected = np.mean([logits[index] for index in folds], axis=0)
            try:
                found = run_graph(archive.read(name), sample["patch"].astype(np.float32)[None])[0]
            except ArchiveError:
                raise
            except Exception as error:  # onnxruntime has no common class for its errors
                raise ArchiveError(f"{name}: onnxruntime cannot run it ({error})") from error
            difference = _difference(found, expected, name, GRAPH_TOLERANCE)
            result.graph_difference = max(result.graph_difference or 0.0, difference)
    return set(present)
