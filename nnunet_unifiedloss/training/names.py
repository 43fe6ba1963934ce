"""The grammar of trainer names: a trainer's name is its configuration.

``nnUNetTrainer<Loss>[_<parameter><value>]…[_<Base>][_scale<value>]
[_lr<value>][_<N>epochs][_<N>iters]``

nnU-Net finds results folders by the typed name, so a configuration has one spelling: the parts in
this order, parameters in the constructor's order, numbers in their shortest form, and nothing that
is the default anyway.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Any

from nnunet_unifiedloss.losses import SegmentationLoss
from nnunet_unifiedloss.training.catalogue import catalogue
from nnunet_unifiedloss.training.host_variants import PREFIX, host_variants, sets_its_own_loss
from nnunet_unifiedloss.training.scales import scale_of

__all__ = ["TrainerName", "TrainerNameError", "parse"]

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_LIST = re.compile(rf"{_NUMBER}(?:-{_NUMBER})+", re.IGNORECASE)
_SCHEDULE = re.compile(r"(\d{1,9})(epochs|iters)")
# nnUNetTrainer's own settings, which a name leaves out so that it has one spelling
HOST_DEFAULTS = {"learning_rate": 0.01, "epochs": 1000, "iterations": 250}
# positive numbers that a name can set: prefix, meaning
_SETTINGS = {"scale": ("scale", "scale of the loss"), "learning_rate": ("lr", "learning rate")}
FROM_PLANS = "plans"  # a ``spacing`` that the trainer takes from the plans
_LONGEST_NAME = 200  # file systems allow 255 characters, and plans and configuration follow


class TrainerNameError(ValueError):
    """A trainer name that is ours but breaks the grammar; the message says what is right."""


@dataclass(frozen=True)
class TrainerName:
    """The parts of a trainer name.

    Attributes:
        loss: The loss class.
        parameters: Hyperparameters of the loss that differ from the default.
        base: Suffix of one of nnU-Net's own trainer variants, or None.
        scale: Factor of the loss, or None for that of its class.
        learning_rate: nnU-Net's ``initial_lr``, or None for that of the base.
        epochs: Number of epochs, or None for that of the base.
        iterations: Training iterations per epoch, or None for that of the base.
    """

    loss: type[SegmentationLoss]
    parameters: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    scale: float | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    iterations: int | None = None

    def __str__(self) -> str:
        defaults = self.loss.defaults()
        parts = [PREFIX + self.loss.__name__.removesuffix("Loss")]
        parts += [
            camel_case(name) + format_value(self.parameters[name])
            for name in defaults
            if name in self.parameters and self.parameters[name] != defaults[name]
        ]
        parts += [] if self.base is None else [self.base]
        settings = {
            "scale": f"scale{format_value(self.scale or 0)}",
            "learning_rate": f"lr{format_value(self.learning_rate or 0)}",
            "epochs": f"{self.epochs}epochs",
            "iterations": f"{self.iterations}iters",
        }
        # a variant may have other defaults, so none of nnU-Net's settings is redundant after a base
        unsaid = {"scale": scale_of(self.loss)} | (HOST_DEFAULTS if self.base is None else {})
        parts += [
            part
            for name, part in settings.items()
            if getattr(self, name) not in (None, unsaid.get(name))
        ]
        return "_".join(parts)


def loss_of(name: str) -> type[SegmentationLoss] | None:
    """The loss that a trainer name is about, or None where the name is not ours.

    Example:
        >>> loss_of("nnUNetTrainerDice_smooth1").__name__
        'DiceLoss'
        >>> loss_of("nnUNetTrainerDA5") is None
        True
    """
    stem = name.partition("_")[0]
    if not stem.startswith(PREFIX):
        return None
    return SegmentationLoss.registry.get(stem.removeprefix(PREFIX) + "Loss")


def parse(name: str) -> TrainerName:
    """Read a trainer name.

    Args:
        name: A name of the grammar.

    Returns:
        Its parts; ``str()`` of them is the name.

    Raises:
        TrainerNameError: A part is unknown, repeated, out of range or spelt differently; the
            message names the part, what is possible, and the right spelling where there is one.

    Example:
        >>> parse("nnUNetTrainerUnifiedFocal_delta0.7_250epochs").parameters
        {'delta': 0.7}
        >>> parse("nnUNetTrainerUnifiedFocal_gamma0.3_delta0.70")
        Traceback (most recent call last):
            ...
        nnunet_unifiedloss.training.names.TrainerNameError: \
nnUNetTrainerUnifiedFocal_gamma0.3_delta0.70: another spelling of \
nnUNetTrainerUnifiedFocal_delta0.7_gamma0.3; nnU-Net finds results by the typed name, so use \
that one
    """
    loss = loss_of(name)
    if loss is None:
        known = [entry.trainer for entry in catalogue()]
        close = difflib.get_close_matches(name.partition("_")[0], known, n=3) or known
        raise TrainerNameError(f"{name}: not a trainer of ours; possible: {', '.join(close)}")
    if len(name) > _LONGEST_NAME:
        raise TrainerNameError(
            f"{name}: has {len(name)} characters, but nnU-Net makes a folder of it; "
            f"at most {_LONGEST_NAME} are possible"
        )
    parsed = TrainerName(loss, **_read_parts(name, loss))
    said = {key: value for key, value in parsed.parameters.items() if value != FROM_PLANS}
    try:
        loss(**said)
    except (TypeError, ValueError) as error:
        raise TrainerNameError(f"{name}: {error}") from error
    if str(parsed) != name:
        raise TrainerNameError(
            f"{name}: another spelling of {parsed}; nnU-Net finds results by the typed name, so "
            f"use that one"
        )
    return parsed


def _read_parts(name: str, loss: type[SegmentationLoss]) -> dict[str, Any]:
    """The arguments of TrainerName that the parts of a name give, in whatever order."""
    found: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    rest = name.partition("_")[2] if "_" in name else None
    while rest is not None:
        part, key, value, remaining = _read_part(name, rest, loss)
        target = parameters if key in loss.defaults() else found
        if key == "base" and key in found:
            raise TrainerNameError(
                f"{name}: part '{part}': only one of nnU-Net's variants is possible, and "
                f"'{found[key]}' is there already"
            )
        if key in target:
            raise TrainerNameError(f"{name}: part '{part}' repeats what an earlier part has set")
        target[key] = value
        rest = remaining
    return {**found, "parameters": parameters}


def _read_part(
    name: str, rest: str, loss: type[SegmentationLoss]
) -> tuple[str, str, Any, str | None]:
    """Read the first part of the rest of a name: (part, what it sets, value, what remains)."""
    part, separator, remaining = rest.partition("_")
    after = remaining if separator else None
    schedule = _SCHEDULE.fullmatch(part)
    if schedule:
        number, unit = int(schedule[1]), schedule[2]
        if number < 1:
            raise TrainerNameError(f"{name}: part '{part}': must be at least 1")
        return part, "epochs" if unit == "epochs" else "iterations", number, after
    for parameter, default in sorted(loss.defaults().items(), key=lambda item: -len(item[0])):
        if part.startswith(camel_case(parameter)):
            text = part.removeprefix(camel_case(parameter))
            from_plans = parameter == "spacing" and text == FROM_PLANS.capitalize()
            value = FROM_PLANS if from_plans else _read_value(text, default)
            if value is not None:
                return part, parameter, value, after
            if not text[:1].isalpha():
                raise TrainerNameError(
                    f"{name}: part '{part}': expected a number right after "
                    f"'{camel_case(parameter)}', as in '{camel_case(parameter)}0.5', got '{text}'"
                )
    setting = _read_setting(name, part)
    if setting is not None:
        return part, *setting, after
    base = _read_base(name, rest)
    if base is None:
        raise TrainerNameError(f"{name}: unknown part '{part}'; {_possible_parts(part, loss)}")
    return base, "base", base, rest[len(base) + 1 :] or None


def _read_setting(name: str, part: str) -> tuple[str, float] | None:
    """The setting that a part such as ``lr0.02`` gives, and its value."""
    for setting, (prefix, meaning) in _SETTINGS.items():
        value = _read_value(part.removeprefix(prefix), 0.0) if part.startswith(prefix) else None
        if value is not None:
            if isinstance(value, tuple) or not 0 < value < float("inf"):
                raise TrainerNameError(
                    f"{name}: part '{part}': the {meaning} must be one number > 0, finite"
                )
            return setting, value
    return None


def _read_base(name: str, rest: str) -> str | None:
    """The longest suffix of one of nnU-Net's own trainer variants that the rest begins with."""
    for suffix, variant in sorted(host_variants().items(), key=lambda item: -len(item[0])):
        if rest == suffix or rest.startswith(suffix + "_"):
            if sets_its_own_loss(variant):
                raise TrainerNameError(
                    f"{name}: part '{suffix}': {variant.__name__} sets a loss of its own, which "
                    f"{name.partition('_')[0]} would replace; train it by its own name"
                )
            return suffix
    return None


def _possible_parts(part: str, loss: type[SegmentationLoss]) -> str:
    parameters = [camel_case(parameter) for parameter in loss.defaults()]
    bases = sorted(suffix for suffix, cls in host_variants().items() if not sets_its_own_loss(cls))
    others = ["scale", "lr", "epochs", "iters"]
    letters = re.sub(r"[\d.-].*", "", part)
    close = difflib.get_close_matches(letters, [*parameters, *bases, *others], n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    values = ", ".join(
        f"{parameter}<value>" + (" or spacingPlans" if parameter == "spacing" else "")
        for parameter in parameters
    )
    return (
        f"{hint}Possible: {values + ', ' if values else ''}one of nnU-Net's own variants "
        f"({', '.join(bases)}), scale<value>, lr<value>, <N>epochs, <N>iters"
    )


def camel_case(parameter: str) -> str:
    """The spelling of a constructor argument in a trainer name.

    Example:
        >>> camel_case("weight_dice")
        'weightDice'
    """
    first, *others = parameter.split("_")
    return first + "".join(word.capitalize() for word in others)


def format_value(value: Any) -> str:  # noqa: ANN401 (whatever a constructor takes)
    """The shortest spelling of a value; a bool is 1 or 0, the items of a list are joined by ``-``.

    Example:
        >>> format_value(0.70), format_value(20.0), format_value(1e-05), format_value((0.1, 1, 4))
        ('0.7', '20', '1e-5', '0.1-1-4')
        >>> format_value("plans")
        'Plans'
    """
    if value == FROM_PLANS:
        return FROM_PLANS.capitalize()
    if isinstance(value, (tuple, list)):
        return "-".join(format_value(item) for item in value)
    if float(value).is_integer() and abs(value) < 1e16:
        return str(int(value))
    return re.sub(r"e([+-])0*", lambda m: "e" + m[1].replace("+", ""), repr(float(value)))


def _read_value(text: str, default: Any) -> Any:  # noqa: ANN401
    """The value that a text spells, or None where it spells none."""
    if _LIST.fullmatch(text):
        return tuple(_read_number(item) for item in re.findall(_NUMBER, text, re.IGNORECASE))
    try:
        value = _read_number(text)
    except ValueError:
        return None
    return bool(value) if isinstance(default, bool) and value in (0, 1) else value


def _read_number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value
