"""The model card: task, training, quality and commands of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from nnunet_unifiedloss.export.crossvalidation import METRICS, estimates, validated_folds
from nnunet_unifiedloss.export.models import Model
from nnunet_unifiedloss.training.names import camel_case, format_value

UNSET = {"class_weights": "from the data"}  # the meaning of a parameter without a value
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
        trained_by: For each of them, the result of :func:`~.provenance.trained_by`.
        trainer_in_checkpoints: The trainer that nnU-Net builds the networks with.
        notes: Markdown about intended use and limits; placeholders without it.
        remarks: Anything else that a reader must know about this export.

    Returns:
        Markdown.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nnunet_unifiedloss.export"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    dataset = models[0].read("dataset.json")
    labels = dataset["labels"].values()
    return environment.get_template("card.md.j2").render(
        models=models,
        first=models[0],
        dataset=dataset,
        channels=(dataset.get("channel_names") or dataset.get("modality") or {}).values(),
        has_regions=any(isinstance(value, list) and len(value) > 1 for value in labels),
        command=_command,
        trainer_in_checkpoints=trainer_in_checkpoints,
        notes=notes,
        remarks=remarks,
        origin=trained_by[0],
        parameters=_parameters(trained_by[0]),
        configurations=[_configuration(*each) for each in zip(models, trained_by, strict=True)],
        default_checkpoint=DEFAULT_CHECKPOINT,
        times=lambda values: " × ".join(f"{value:g}" for value in values),
    )


def _command(model: Model) -> str:
    """The command that predicts with a configuration."""
    command = (
        f"nnUNetv2_predict -i <images> -o <predictions {model.configuration}> "
        f"-d {model.dataset} -c {model.configuration} -f {' '.join(model.folds)} "
        f"-tr {model.trainer} -p {model.plans}"
    )
    if model.checkpoints[0] != DEFAULT_CHECKPOINT:
        command += f" -chk {model.checkpoints[0]}"
    if model.previous_stage is not None:
        command += f" -prev_stage_predictions <predictions {model.previous_stage}>"
    return command


def _parameters(origin: dict[str, Any]) -> str:
    """The parameters of the loss, spelt as in the name of a trainer."""
    return " ".join(
        f"{camel_case(name)}={UNSET.get(name, 'none') if value is None else format_value(value)}"
        for name, value in origin["parameters"].items()
    )


def _configuration(model: Model, origin: dict[str, Any]) -> dict[str, Any]:
    """The content of the section about a configuration."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    planned = PlansManager(model.read("plans.json")).get_configuration(model.configuration)
    # nnU-Net writes a region as a tuple, data sets write it as a list
    names = {
        str(tuple(value) if isinstance(value, list) else value): name
        for name, value in model.read("dataset.json")["labels"].items()
    }
    return {
        "model": model,
        "planned": planned,
        "stages": planned.network_arch_init_kwargs.get("features_per_stage"),
        "settings": ", ".join(f"{name} {value}" for name, value in origin["settings"].items()),
        "folds": validated_folds(model),
        "estimates": estimates(model),
        "metrics": METRICS,
        "names": names,
    }
