"""Export of one archive that an unmodified nnU-Net installs and runs."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_unifiedloss._support.files import replacing
from nnunet_unifiedloss.export.archive import ArchiveWriter, archive_digest
from nnunet_unifiedloss.export.card import model_card
from nnunet_unifiedloss.export.checkpoints import (
    read_checkpoint,
    slim,
    stock_trainer,
    to_bytes,
    trainer_class,
)
from nnunet_unifiedloss.export.extras import ensemble_files, model_files
from nnunet_unifiedloss.export.models import Model
from nnunet_unifiedloss.export.network import (
    input_channels,
    logits_of_folds,
    original_network,
    sample_patch,
    thinned,
)
from nnunet_unifiedloss.export.provenance import trained_by, versions
from nnunet_unifiedloss.export.verify import CARD, FORMAT, MANIFEST, SAMPLE, Verification, verify
from nnunet_unifiedloss.training.trainer import last_scale


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        verify: Compare the predictions of what was exported with those of the original.
        with_training_state: Keep optimizer and logs, so that a training can go on.
        onnx: One graph for each checkpoint (``ensemble``: the mean of the folds) or each fold.
        notes: Markdown for the card's section on intended use and limits.
    """

    verify: bool = True
    with_training_state: bool = False
    onnx: Literal["ensemble", "folds"] | None = None
    notes: str | None = None


@dataclass(frozen=True)
class ExportResult:
    """Result of an export.

    Attributes:
        path: The archive.
        sha256: Its digest, for those who receive it.
        card: The model card.
        bytes_before: Size of the original checkpoints.
        bytes_after: Size of the exported ones, before they are compressed.
        verification: Result of the verification; None without one.
    """

    path: Path
    sha256: str
    card: str
    bytes_before: int
    bytes_after: int
    verification: Verification | None


def export_models(
    models: Sequence[Model],
    output: Path,
    *,
    options: ExportOptions = ExportOptions(),
    progress: Callable[[str], object] = lambda _: None,
) -> ExportResult:
    """Write an archive for ``nnUNetv2_install_pretrained_model_from_zip``.

    It is written under a temporary name, verified, and then renamed: whatever goes wrong, an
    archive that was there before is unchanged, and no half of one is left.

    Args:
        models: The models that :func:`~nnunet_unifiedloss.export.select_models` returns.
        output: The archive.
        options: Options of the export.
        progress: Called with what is being done.

    Returns:
        The result.

    Raises:
        ValueError: Something cannot be exported, or the exported model predicts otherwise.
        ImportError: ``onnx`` is asked for, and the extra is not installed.
        OSError: The archive cannot be written.
    """
    if not output.parent.is_dir() or (output.exists() and not output.is_file()):
        raise ValueError(
            f"-o {output}: expected a file in a folder that exists; remedy: name the file, as "
            "model.zip, and mkdir -p its folder"
        )
    if options.onnx is not None:
        from nnunet_unifiedloss.export.onnx_graph import require_packages

        require_packages()
    with replacing(output) as draft:
        with ArchiveWriter(draft) as writer:
            content = _Content(writer, options, progress)
            card = content.add(models)
        # same network, same weights, same machine: the logits must be equal
        checked = verify(draft, tolerance=0, progress=progress) if options.verify else None
        digest = archive_digest(draft)
    return ExportResult(output, digest, card, content.bytes_before, content.bytes_after, checked)


class _Content:
    """Puts models into an archive and collects remarks for the card."""

    def __init__(
        self, writer: ArchiveWriter, options: ExportOptions, progress: Callable[[str], object]
    ) -> None:
        self._writer, self._options, self._progress = writer, options, progress
        self._trainers: dict[str, None] = {}
        self.remarks: list[str] = []
        self.bytes_before = self.bytes_after = 0

    def add(self, models: Sequence[Model]) -> str:
        """Add everything; returns the model card."""
        origins = [trained_by(model) for model in models]
        records = [self._add_model(*each) for each in zip(models, origins, strict=True)]
        for name, content in ensemble_files(models, self.remarks):
            self._writer.add(name, content)
        self.remarks.append(
            "Verified: on a stored sample of noise, the exported checkpoints predict exactly what "
            "the original ones do."
            if self._options.verify
            else "Not verified (--no-verify): the exported checkpoints were not run, and no "
            "predictions are stored to compare with."
        )
        card = model_card(
            models,
            origins,
            trainer_in_checkpoints=", ".join(self._trainers),
            notes=self._options.notes,
            remarks=self.remarks,
        )
        for model in models:
            self._writer.add(f"{model.name}/{CARD}", card.encode())
        manifest = {
            "format": FORMAT,
            "exported_with": versions(),
            "models": records,
            "files": dict(self._writer.digests),
        }
        for model in models:
            self._writer.add_json(f"{model.name}/{MANIFEST}", manifest)
        return card

    def _add_model(self, model: Model, origin: dict[str, Any]) -> dict[str, Any]:
        """Add a configuration; returns its record for the manifest."""
        for name, content in model_files(model, self.remarks):
            self._writer.add(name, content)
        mirroring = [self._add_checkpoints(model, origin, name) for name in model.checkpoints]
        if self._options.verify or self._options.onnx is not None:
            self._add_predictions(model, mirroring)
        return {
            "folder": model.name,
            "configuration": model.configuration,
            "folds": model.folds,
            "checkpoints": model.checkpoints,
            "trained_by": origin,
        }

    def _add_checkpoints(self, model: Model, origin: dict[str, Any], name: str) -> Any:  # noqa: ANN401
        """Add one checkpoint of each fold; returns the axes along which nnU-Net mirrors."""
        axes: list[Any] = []
        for fold in model.folds:
            path = model.fold(fold) / name
            self._progress(f"{model.name}: fold {fold}, {name}")
            checkpoint = read_checkpoint(path)
            axes.append(checkpoint.get("inference_allowed_mirroring_axes"))
            stock, state = self._stock_name(checkpoint), self._options.with_training_state
            try:
                exported = slim(checkpoint, stock, with_training_state=state)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            which = f"{model.configuration}, fold {fold}, {name}"
            if exported["trained_by"] != model.trainer:
                self.remarks.append(
                    f"{which}: trained by {exported['trained_by']}, not by the trainer that the "
                    "folder is named after."
                )
            # an exported checkpoint may be without log
            scale = last_scale(checkpoint["logging"]) if "logging" in checkpoint else None
            if None not in (scale, origin["scale"]) and scale != origin["scale"]:
                self.remarks.append(f"{which}: trained with a loss scale of {scale:g}.")
            content = to_bytes(exported)
            self.bytes_before += path.stat().st_size
            self.bytes_after += len(content)
            self._writer.add(f"{model.name}/fold_{fold}/{name}", content)
        return axes[0]  # nnU-Net takes those of the first fold

    def _stock_name(self, checkpoint: dict[str, Any]) -> str:
        """The trainer that the exported checkpoint names; a remark if it is not nnUNetTrainer."""
        stock = stock_trainer(trainer_class(checkpoint["trainer_name"]))
        name: str = stock.__name__
        if name not in self._trainers:
            self._trainers[name] = None
            if stock is not nnUNetTrainer:
                self.remarks.append(
                    f"The network is that of {name} (in {stock.__module__}), which the checkpoints "
                    "name: whoever predicts needs that trainer."
                )
        return name

    def _sample(self, model: Model) -> np.ndarray:
        plans, dataset = model.read("plans.json"), model.read("dataset.json")
        size = PlansManager(plans).get_configuration(model.configuration).patch_size
        return sample_patch(input_channels(plans, dataset, model.configuration), size)

    def _run_original(
        self, model: Model, checkpoint: str, sample: np.ndarray
    ) -> tuple[nn.Module, list[dict[str, Tensor]], np.ndarray]:
        """The original network, the weights of the folds, and their predictions on the sample."""
        self._progress(f"{model.name}: predictions of the original {checkpoint}")
        which = f"{model.folder}: {checkpoint} of folds {' '.join(model.folds)}"
        try:
            network, weights = original_network(model.folder, model.folds, checkpoint)
            logits = [thinned(each) for each in logits_of_folds(network, weights, sample)]
        except Exception as error:  # any error that would stop nnUNetv2_predict
            reason = textwrap.shorten(str(error), 300)
            raise ValueError(
                f"{which}: nnU-Net itself cannot run it ({reason}); remedy: choose others with -f "
                "and -chk"
            ) from error
        if not all(np.isfinite(each).all() for each in logits):
            raise ValueError(
                f"{which}: predicts what is not a number, so a training has diverged; remedy: "
                "choose others with -f and -chk"
            )
        return network, weights, np.stack(logits)

    def _add_predictions(self, model: Model, mirroring: list[Any]) -> None:
        """Add the original networks' predictions on the sample, and their ONNX graphs."""
        sample = self._sample(model)
        stored: dict[str, Any] = {"patch": sample}
        for checkpoint, axes in zip(model.checkpoints, mirroring, strict=True):
            network, weights, stored[checkpoint] = self._run_original(model, checkpoint, sample)
            if self._options.onnx is not None:
                from nnunet_unifiedloss.export.onnx_graph import model_graphs

                self._progress(f"{model.name}: ONNX graph of {checkpoint}")
                each_fold = self._options.onnx == "folds"
                for name, graph, remark in model_graphs(
                    model, checkpoint, network, weights, sample, mirroring=axes, each_fold=each_fold
                ):
                    self._writer.add(f"{model.name}/{name}", graph)
                    self.remarks.append(f"{model.configuration}, {remark}")
        if self._options.verify:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **stored)
            self._writer.add(f"{model.name}/{SAMPLE}", buffer.getvalue())
