"""The other files of nnU-Net that are exported with the checkpoints, if they exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_unifiedloss.export.checkpoints import without_file_lists
from nnunet_unifiedloss.export.models import Model
from nnunet_unifiedloss.export.postprocessing import clean_postprocessing
from nnunet_unifiedloss.results.trainings import read_json

# debug.json and the logs stay behind: they hold paths and the name of the machine
_OF_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json")
_OF_FOLD = ("progress.png", "network_architecture.pdf", "validation/summary.json")
_OF_EVALUATION = ("summary.json", "postprocessing.json", "postprocessing.pkl")


def model_files(model: Model, remarks: list[str]) -> Iterator[tuple[str, bytes]]:
    """The files of a model besides its checkpoints.

    Args:
        model: The model.
        remarks: Extended where a file is left out.

    Yields:
        Name in the archive, and content.
    """
    paths = [model.folder / name for name in _OF_MODEL]
    paths += [model.fold(fold) / name for fold in model.folds for name in _OF_FOLD]
    evaluation = model.folder / f"crossval_results_folds_{'_'.join(model.folds)}"
    paths += [evaluation / name for name in _OF_EVALUATION]
    yield from _files(model.results, paths, remarks)


def ensemble_files(models: Sequence[Model], remarks: list[str]) -> Iterator[tuple[str, bytes]]:
    """nnU-Net's evaluation of the ensembles whose members are all exported."""
    exported = {model.name.partition("/")[2] for model in models}
    folder = models[0].results / models[0].dataset / "ensembles"
    for ensemble in sorted(folder.glob("ensemble___*")):
        _, *members, folds = ensemble.name.split("___")
        if set(members) <= exported and folds == "_".join(models[0].folds):
            paths = [ensemble / name for name in _OF_EVALUATION]
            yield from _files(models[0].results, paths, remarks)


def _files(results: Path, paths: Sequence[Path], remarks: list[str]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        if not path.is_file():
            continue
        name = path.relative_to(results).as_posix()
        if path.name == "dataset.json":
            yield name, _as_json(without_file_lists(read_json(path)))
        elif path.name == "summary.json":
            yield name, _as_json(_without_folders(read_json(path)))
        elif path.suffix == ".pkl":
            try:
                yield name, clean_postprocessing(path.read_bytes())
                remarks.append(
                    f"nnUNetv2_apply_postprocessing -pp_pkl_file {name} applies the postprocessing "
                    "that nnU-Net determined; the metrics here are without it."
                )
            except ValueError as error:
                remarks.append(f"{name} is left out: more than nnU-Net's postprocessing ({error})")
        else:
            yield name, path.read_bytes()


def _without_folders(summary: Any) -> Any:  # noqa: ANN401
    """A ``summary.json`` with names of segmentations, without the folders of this machine."""
    for case in summary.get("metric_per_case", []):
        for key in ("prediction_file", "reference_file"):
            if key in case:
                case[key] = re.split(r"[/\\]", case[key])[-1]
    return summary


def _as_json(content: Any) -> bytes:  # noqa: ANN401
    return json.dumps(content, indent=4).encode()
