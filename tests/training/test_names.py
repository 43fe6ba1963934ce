"""The grammar of trainer names."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest

from nnunet_unifiedloss import losses, trainers
from nnunet_unifiedloss.training.host_variants import host_variants, sets_its_own_loss
from nnunet_unifiedloss.training.names import (
    TrainerNameError,
    camel_case,
    catalogue,
    format_value,
    parse,
)
from tests.helpers.table import every_loss, parameter_sets

VARIANTS = [suffix for suffix, cls in host_variants().items() if not sets_its_own_loss(cls)]


def test_every_loss_has_an_explicit_trainer():
    explicit = {}
    for info in pkgutil.iter_modules(trainers.__path__):
        assert info.name.startswith("unifiedloss_"), (
            "a common name could be that of a loaded module"
        )
        module = importlib.import_module(f"nnunet_unifiedloss.trainers.{info.name}")
        classes = {
            name: value for name, value in vars(module).items() if name.startswith("nnUNetTrainer")
        }
        assert not explicit.keys() & classes.keys()
        explicit |= {name: cls for name, cls in classes.items() if "_" not in name}
    assert {name: cls.loss_class.__name__ for name, cls in explicit.items()} == {
        entry.trainer: entry.loss for entry in catalogue()
    }


def test_no_name_of_nnunet_is_reused():
    taken = {"nnUNetTrainer" + suffix for suffix in host_variants()}
    assert not taken & {entry.trainer for entry in catalogue()}


def test_catalogue_is_complete():
    for entry in catalogue():
        assert entry.paper
        assert entry.when.endswith(".")
        assert entry.parameters == getattr(losses, entry.loss).defaults()


@every_loss
def test_every_parameter_can_be_set(name):
    stem = "nnUNetTrainer" + name.removesuffix("Loss")
    defaults = getattr(losses, name).defaults()
    for changes in parameter_sets(name, regions=False, dims=3):
        changed = {
            key: changes[key]
            for key in defaults
            if changes.get(key, defaults[key]) != defaults[key]
        }
        typed = "_".join(
            [stem] + [camel_case(key) + format_value(value) for key, value in changed.items()]
        )
        cls = getattr(trainers, typed)
        assert cls.__name__ == typed
        assert cls.loss_parameters == changed
        assert cls.loss_class(**cls.loss_parameters).hyperparameters == defaults | changed


@pytest.mark.parametrize("suffix", VARIANTS)
def test_every_variant_of_nnunet_is_a_base(suffix):
    variant = host_variants()[suffix]
    name = f"nnUNetTrainerUnifiedFocal_delta0.7_{suffix}_scale1_lr0.004_3epochs_7iters"
    cls = getattr(trainers, name)
    assert issubclass(cls, trainers.nnUNetTrainerUnifiedFocal)
    assert issubclass(cls, variant)
    assert cls.__name__ == name
    assert (cls.set_scale, cls.set_learning_rate) == (1, 0.004)
    assert (cls.set_epochs, cls.set_iterations) == (3, 7)


@pytest.mark.parametrize(
    "suffix", ["NoMirroring", "DA5", "CosAnneal", "Adam", "NoDeepSupervision", "DASegOrd0"]
)
def test_known_variants_are_found(suffix):
    assert suffix in VARIANTS


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainerUnifiedFocal",
        "nnUNetTrainerUnifiedFocal_delta0.7_gamma0.3_250epochs",
        "nnUNetTrainerUnifiedFocal_delta0.7_NoMirroring_2epochs_10iters",
        "nnUNetTrainerUnifiedFocal_weight0.25_delta0.7_gamma0_smooth1e-5_includeBackground0_Adam_lr1e-5_1epochs",
        "nnUNetTrainerFocal_gamma3_alpha0.1-1-4",
        "nnUNetTrainerFocal_alpha1e-5-0.5-2",
        "nnUNetTrainerDiceCrossEntropy_weightDice2_weightCe0.5",
        "nnUNetTrainerUnifiedFocal_DA5_10epochs",
        "nnUNetTrainerUnifiedFocal_scale1",
        "nnUNetTrainerUnifiedFocal_delta0.7_DA5_scale3.5_lr0.02_10epochs",
        "nnUNetTrainerTversky_scale2.5",
        "nnUNetTrainerTversky_scale1e-5",
        "nnUNetTrainerUnifiedFocal_Adam1en3_lr0.01_1000epochs",
        "nnUNetTrainerUnifiedFocal_onlyMirror01_DASegOrd0_10epochs",
    ],
)
def test_names_round_trip(name):
    assert str(parse(name)) == name
    assert getattr(trainers, name).__name__ == name
    assert getattr(trainers, name) is getattr(trainers, name)
    assert "__" not in name


@pytest.mark.parametrize(
    ("name", "right"),
    [
        (
            "nnUNetTrainerUnifiedFocal_gamma0.3_delta0.7",
            "nnUNetTrainerUnifiedFocal_delta0.7_gamma0.3",
        ),
        ("nnUNetTrainerUnifiedFocal_delta0.70", "nnUNetTrainerUnifiedFocal_delta0.7"),
        ("nnUNetTrainerUnifiedFocal_delta.7", "nnUNetTrainerUnifiedFocal_delta0.7"),
        ("nnUNetTrainerUnifiedFocal_delta7e-1", "nnUNetTrainerUnifiedFocal_delta0.7"),
        ("nnUNetTrainerFocal_gamma3.0", "nnUNetTrainerFocal_gamma3"),
        ("nnUNetTrainerFocal_alpha0.10-1.0", "nnUNetTrainerFocal_alpha0.1-1"),
        ("nnUNetTrainerUnifiedFocal_delta0.6", "nnUNetTrainerUnifiedFocal"),
        ("nnUNetTrainerDice_smooth1e-05_lr1e-03", "nnUNetTrainerDice_lr0.001"),
        (
            "nnUNetTrainerUnifiedFocal_5epochs_NoMirroring",
            "nnUNetTrainerUnifiedFocal_NoMirroring_5epochs",
        ),
        ("nnUNetTrainerUnifiedFocal_010epochs", "nnUNetTrainerUnifiedFocal_10epochs"),
        ("nnUNetTrainerUnifiedFocal_10iters_5epochs", "nnUNetTrainerUnifiedFocal_5epochs_10iters"),
        ("nnUNetTrainerUnifiedFocal_lr0.01_1000epochs_250iters", "nnUNetTrainerUnifiedFocal"),
        ("nnUNetTrainerFocal_alpha.5-1", "nnUNetTrainerFocal_alpha0.5-1"),
        ("nnUNetTrainerUnifiedFocal_scale3.57", "nnUNetTrainerUnifiedFocal"),
        ("nnUNetTrainerUnifiedFocal_DA5_scale3.57", "nnUNetTrainerUnifiedFocal_DA5"),
        ("nnUNetTrainerUnifiedFocal_scale1.0", "nnUNetTrainerUnifiedFocal_scale1"),
        ("nnUNetTrainerTversky_scale1", "nnUNetTrainerTversky"),
        (
            "nnUNetTrainerUnifiedFocal_lr0.02_scale1_DA5",
            "nnUNetTrainerUnifiedFocal_DA5_scale1_lr0.02",
        ),
    ],
)
def test_another_spelling_is_refused_with_the_right_one(name, right):
    with pytest.raises(TrainerNameError, match=f"another spelling of {right};"):
        getattr(trainers, name)
    assert getattr(trainers, right).__name__ == right


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nnUNetTrainerUnifiedFocal_gama0.3",
            r"unknown part 'gama0.3'; did you mean 'gamma'\?.*weight<value>.*DA5",
        ),
        (
            "nnUNetTrainerUnifiedFocal_NoMiroring",
            r"unknown part 'NoMiroring'; did you mean 'NoMirroring'\?",
        ),
        ("nnUNetTrainerUnifiedFocal_5epoch", r"unknown part '5epoch'.*<N>epochs"),
        ("nnUNetTrainerUnifiedFocal_delta", "part 'delta': expected a number right after 'delta'"),
        ("nnUNetTrainerUnifiedFocal_", "unknown part ''"),
        ("nnUNetTrainerUnifiedFocal__delta0.7", "unknown part ''"),
        ("nnUNetTrainerUnifiedFocal_delta0.7_", "unknown part ''"),
        ("nnUNetTrainerUnifiedFocal_delta0.7_delta0.8", "part 'delta0.8' repeats"),
        (
            "nnUNetTrainerUnifiedFocal_DA5_NoMirroring",
            "part 'NoMirroring': only one of nnU-Net's",
        ),
        ("nnUNetTrainerUnifiedFocal_2epochs_3epochs", "part '3epochs' repeats"),
        ("nnUNetTrainerUnifiedFocal_delta7", "delta: must be >= 0 and <= 1, got 7"),
        ("nnUNetTrainerUnifiedFocal_delta-0.1", "delta: must be >= 0 and <= 1, got -0.1"),
        ("nnUNetTrainerUnifiedFocal_deltanan", "delta: .* got nan"),
        ("nnUNetTrainerUnifiedFocal_delta0.1-0.2", r"delta: expected a number, got \(0.1, 0.2\)"),
        (
            "nnUNetTrainerUnifiedFocal_includeBackground2",
            "include_background: expected True or False, got 2",
        ),
        ("nnUNetTrainerUnifiedFocal_0epochs", "part '0epochs': must be at least 1"),
        ("nnUNetTrainerUnifiedFocal_0iters", "part '0iters': must be at least 1"),
        ("nnUNetTrainerUnifiedFocal_lr1-2", "part 'lr1-2': the learning rate must be one number"),
        ("nnUNetTrainerBoundary_spacingplans", "unknown part 'spacingplans'"),
        ("nnUNetTrainerBoundary_spacing1-0-1", r"spacing.1.: must be > 0"),
        ("nnUNetTrainerUnifiedFocal_lr0", "part 'lr0': the learning rate must be one number > 0"),
        (
            "nnUNetTrainerUnifiedFocal_lrinf",
            "part 'lrinf': the learning rate must be one number > 0",
        ),
        *(
            (
                f"nnUNetTrainerUnifiedFocal_scale{value}",
                f"part 'scale{value}': the scale of the loss must be one number > 0, finite",
            )
            for value in ("0", "-1", "inf", "nan", "1-2", "1e400")
        ),
        ("nnUNetTrainerUnifiedFocal_scale", r"unknown part 'scale'; .*Possible: .*scale<value>"),
        ("nnUNetTrainerUnifiedFocal_scale2_scale3", "part 'scale3' repeats"),
        (
            "nnUNetTrainerUnifiedFocal_DiceLoss",
            "part 'DiceLoss': nnUNetTrainerDiceLoss sets a loss of its own",
        ),
    ],
)
def test_bad_names_are_refused_with_what_is_possible(name, message):
    with pytest.raises(TrainerNameError, match=f"{name}: {message}"):
        getattr(trainers, name)


@pytest.mark.parametrize(
    "name", ["nnUNetTrainer", "nnUNetTrainerDA5", "nnUNetTrainerDice2", "__path__x", "torch"]
)
def test_names_of_others_are_left_to_others(name):
    for module in (trainers, sys.modules["nnunet_unifiedloss.trainers.unifiedloss_region"]):
        assert not hasattr(module, name)


def test_a_misspelt_loss_gets_a_suggestion():
    with pytest.raises(TrainerNameError, match="possible: nnUNetTrainerUnifiedFocal, "):
        parse("nnUNetTrainerUnifedFocal_5epochs")


def test_parts_cannot_be_mistaken_for_each_other():
    """No parameter begins like another one of its loss or like a variant of nnU-Net."""
    for entry in catalogue():
        names = [camel_case(parameter) for parameter in entry.parameters]
        others = [*VARIANTS, "lr", "scale"]
        for name in names:
            assert not any(other.startswith(name) for other in [*others, *names] if other != name)


def test_a_typing_error_in_the_loss_gets_a_hint():
    """nnU-Net asks for names that it has not found; that they do not exist it says itself."""
    with pytest.warns(UserWarning, match="did you mean nnUNetTrainerUnifiedFocal?"):
        assert not hasattr(trainers, "nnUNetTrainerUnifiedFocl_delta0.7")


def test_names_of_nnunet_and_others_get_no_hint(recwarn):
    for name in ("nnUNetTrainerDiceCELoss_noSmooth", "nnUNetTrainerDA5", "nnUNetTrainerMine"):
        assert not hasattr(trainers, name)
    assert not [warning for warning in recwarn if "did you mean" in str(warning.message)]
