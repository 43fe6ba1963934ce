"""The model card: what a model segments, what trained it, how good it is, and how to run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_unifiedloss.export.crossvalidation import (
    CONFIDENCE,
    METRICS,
    estimates,
    validated_folds,
)
from nnunet_unifiedloss.export.models import Model
from nnunet_unifiedloss.training.names import camel_case, format_value

TO_FILL_IN = "(to be filled in: {})"
UNSET = {"class_weights": "from the data"}  # what a parameter without a value means
DEFAULT_CHECKPOINT = "checkpoint_final.pth"


def model_card(
    models: Sequence[Model],
    trained_by: Sequence[dict[str, Any]],
    *,
    trainer_in_checkpoints: str,
    notes: str | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """Write the card of an export.

    Args:
        models: The exported configurations.
        trained_by: What :func:`~.provenance.trained_by` says about each.
        trainer_in_checkpoints: The trainer that nnU-Net builds the networks with.
        notes: Markdown about intended use and limits; placeholders without it.
        remarks: What the reader must know about this export.

    Returns:
        Markdown.
    """
    first = models[0]
    dataset = first.read("dataset.json")
    parts = [
        f"# {dataset.get('name', first.dataset)}: {first.trainer}",
        _task(first, dataset),
        "## How to run it\n\n" + _commands(models, trainer_in_checkpoints),
        *(_remarks(remarks) if remarks else []),
        "## Intended use and limits\n\n" + (notes.strip() if notes else _placeholders()),
        "## Licence of the data\n\n" + _licence(dataset),
        "## Training\n\n" + _training(first, trained_by[0]),
    ]
    for model, origin in zip(models, trained_by, strict=True):
        parts.append(f"## Configuration {model.configuration}\n\n" + _configuration(model, origin))
    return "\n\n".join(parts) + "\n"


def _task(model: Model, dataset: dict[str, Any]) -> str:
    labels = dataset["labels"]
    regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    channels = (dataset.get("channel_names") or dataset.get("modality") or {}).values()
    lines = [str(dataset["description"])] if dataset.get("description") else []
    lines.append(f"Segments {model.dataset}, input: {', '.join(map(str, channels))}.")
    kind = "Region (overlapping, sigmoid)" if regions else "Label"
    lines += ["", f"| {kind} | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in labels.items() if name != "ignore"]
    if regions:
        lines += ["", f"Written in the order {dataset.get('regions_class_order')}."]
    if "ignore" in labels:
        lines += ["", "Trained with an ignore label, which is never predicted."]
    cases = dataset.get("numTraining")
    lines += ["", f"Training set: {cases if cases is not None else 'unknown number of'} cases."]
    if dataset.get("reference"):
        lines += ["", f"Data: {dataset['reference']}"]
    return "\n".join(lines)


def _commands(models: Sequence[Model], trainer: str) -> str:
    lines = ["nnUNetv2_install_pretrained_model_from_zip <this archive>"]
    for model in models:
        command = (
            f"nnUNetv2_predict -i <images> -o <predictions {model.configuration}> "
            f"-d {model.dataset} -c {model.configuration} -f {' '.join(model.folds)} "
            f"-tr {model.trainer} -p {model.plans}"
        )
        if model.checkpoints[0] != DEFAULT_CHECKPOINT:
            command += f" -chk {model.checkpoints[0]}"
        if model.previous_stage is not None:
            command += f" -prev_stage_predictions <predictions {model.previous_stage}>"
        lines.append(command)
    block = "```\n" + "\n".join(lines) + "\n```"
    return (
        f"{block}\n\nnnU-Net builds the network with {trainer}, which the checkpoints name; the "
        "folder keeps the name of the trainer that trained it, so that `-tr` finds it."
    )


def _remarks(remarks: Sequence[str]) -> list[str]:
    return ["## Remarks\n\n" + "\n".join(f"- {remark}" for remark in remarks)]


def _placeholders() -> str:
    wanted = (
        "what it is meant for, and what not",
        "population, scanners and protocols of the data; where it is known to fail",
        "who answers for it",
    )
    return "\n\n".join(TO_FILL_IN.format(each) for each in wanted)


def _licence(dataset: dict[str, Any]) -> str:
    for key in ("licence", "license"):
        if dataset.get(key):
            return str(dataset[key])
    return TO_FILL_IN.format("the licence of the training data also governs the use of the weights")


def _training(model: Model, origin: dict[str, Any]) -> str:
    values = {
        name: format_value(value) if value is not None else UNSET.get(name, "none")
        for name, value in origin["parameters"].items()
    }
    parameters = " ".join(f"{camel_case(name)}={value}" for name, value in values.items())
    lines = [
        f"- Trainer: {origin['trainer']}",
        f"- Loss: {origin['loss']}" + (f" ({parameters})" if parameters else ""),
    ]
    if origin["paper"]:
        lines.append(f"- Paper: {origin['paper']}")
    if fingerprint := origin["fingerprint"]:
        lines.append(f"- SHA-256 of {fingerprint['file']}: {fingerprint['sha256']}")
    return "\n".join(lines)


def _configuration(model: Model, origin: dict[str, Any]) -> str:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    chosen = PlansManager(model.read("plans.json")).get_configuration(model.configuration)
    settings = ", ".join(f"{name} {value}" for name, value in origin["settings"].items())
    stages = chosen.network_arch_init_kwargs.get("features_per_stage")
    normalization = ", ".join(chosen.normalization_schemes)
    lines = [
        f"- Architecture: {chosen.network_arch_class_name.rpartition('.')[2]}"
        + (f", features {'-'.join(map(str, stages))}" if stages else ""),
        f"- Spacing: {_times(chosen.spacing)} (in the order of nnU-Net's axes)",
        f"- Patch: {_times(chosen.patch_size)}, normalisation: {normalization}",
        f"- Folds: {', '.join(model.folds)}; checkpoints: {', '.join(model.checkpoints)}",
    ]
    if chosen.previous_stage_name:
        lines.append(f"- Second stage of a cascade; the first is {chosen.previous_stage_name}")
    if settings:
        lines.append(f"- Settings: {settings}")
    return "\n".join(lines) + "\n\n" + _metrics(model)


def _metrics(model: Model) -> str:
    folds = validated_folds(model)
    if not folds:
        reason = "no fold has nnU-Net's validation/summary.json"
        if model.folds == ("all",):
            reason = "nnU-Net validates fold all on the cases that it was trained on"
        return f"Cross-validation: none ({reason})."
    # nnU-Net writes a region as a tuple, data sets write it as a list
    names = {
        str(tuple(value) if isinstance(value, list) else value): name
        for name, value in model.read("dataset.json")["labels"].items()
    }
    lines = [
        f"Cross-validation, folds {', '.join(folds)}, mean and {CONFIDENCE:.0%} interval "
        "(percentile bootstrap) over the cases whose reference or prediction has the label:",
        "",
        f"| label or region | cases | {' | '.join(METRICS)} |",
        "| --- | --- |" + " --- |" * len(METRICS),
    ]
    for label, by_metric in estimates(model).items():
        row = f"{names.get(label, '')} {label} | {by_metric[METRICS[0]].cases}"
        values = " | ".join(str(by_metric[metric]) for metric in METRICS)
        lines.append(f"| {row} | {values} |")
    if DEFAULT_CHECKPOINT not in model.checkpoints:
        lines += ["", f"nnU-Net validated {DEFAULT_CHECKPOINT}, which is not the one exported."]
    return "\n".join(lines)


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{value:g}" for value in values)
