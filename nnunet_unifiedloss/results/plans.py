"""nnU-Net's plans and preprocessed data, read without importing torch or nnU-Net."""

from __future__ import annotations

import ast
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_unifiedloss.results.trainings import read_json

# the configurations of nnU-Net's planners; small images have fewer
STANDARD_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "2d": {},
    "3d_fullres": {},
    "3d_lowres": {"next_stage": "3d_cascade_fullres"},
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
}


@dataclass(frozen=True)
class Plans:
    """One plans file of a data set, or the configurations that nnU-Net will plan.

    Attributes:
        folder: The data set's folder below ``nnUNet_preprocessed``.
        identifier: ``nnUNetPlans``, …
    """

    folder: Path
    identifier: str

    @property
    def file(self) -> Path:
        """The plans file."""
        return self.folder / f"{self.identifier}.json"

    @property
    def exist(self) -> bool:
        """True if the data set is planned."""
        return self.file.is_file()

    @property
    def configurations(self) -> dict[str, dict[str, Any]]:
        """The configurations by name."""
        if not self.exist:
            return STANDARD_CONFIGURATIONS
        content = _read(self.file)
        try:
            configurations: dict[str, dict[str, Any]] = content["configurations"]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.file}: has no 'configurations', so these are no plans of nnU-Net; "
                f"remedy: delete it, nnUNetv2_plan_and_preprocess writes it again"
            ) from error
        return configurations

    def setting(self, configuration: str, name: str) -> Any:  # noqa: ANN401 (whatever is set)
        """Return a setting of a configuration, perhaps inherited; None if it is not set."""
        seen: set[str] = set()
        configurations = self.configurations
        while configuration in configurations and configuration not in seen:
            seen.add(configuration)
            settings = configurations[configuration]
            if name in settings:
                return settings[name]
            configuration = settings.get("inherits_from", "")
        return None

    def data_folder(self, configuration: str) -> Path:
        """Return the folder of a configuration's preprocessed images."""
        base = "3d_fullres" if configuration == "3d_cascade_fullres" else configuration
        default = f"{self.identifier}_{base}"
        return self.folder / (self.setting(configuration, "data_identifier") or default)

    def previous_stage(self, configuration: str) -> str | None:
        """Return the configuration whose predictions a cascade takes as input."""
        stage: str | None = self.setting(configuration, "previous_stage")
        return stage

    def is_preprocessed(self, configuration: str) -> bool:
        """Return True if every case is preprocessed and has its reference segmentation.

        nnU-Net writes a case's ``.pkl`` last and copies the references after all cases. It never
        removes a reference, so references of cases that have left the data set may remain.
        """
        try:
            dataset = _read(self.folder / "dataset.json")
            ending, number = dataset["file_ending"], dataset.get("numTraining")
            names = [path.name for path in (self.folder / "gt_segmentations").iterdir()]
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return False
        references = {name.removesuffix(ending) for name in names if name.endswith(ending)}
        done = {path.name[:-4] for path in self.data_folder(configuration).glob("*.pkl")}
        return bool(done) and done <= references and len(done) in (len(references), number)

    def folds(self) -> list[list[str]] | None:
        """Return the validation cases of each fold; None before nnU-Net has made the splits."""
        try:
            return [fold["val"] for fold in _read(self.folder / "splits_final.json")]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def planner_of(identifier: str) -> str | None:
    """Return the planner of nnU-Net that writes plans of this name, read from its source.

    Example:
        >>> planner_of("nnUNetResEncUNetLPlans")
        'nnUNetPlannerResEncL'
    """
    return _planners().get(identifier)


def nnunet_source() -> Path:
    """Return the folder of nnU-Net's source without importing it, which takes seconds.

    Raises:
        RuntimeError: nnU-Net is not installed.
    """
    specification = importlib.util.find_spec("nnunetv2")
    if specification is None or not specification.submodule_search_locations:
        raise RuntimeError("nnU-Net is not installed; remedy: pip install nnunetv2")
    return Path(specification.submodule_search_locations[0])


@functools.cache
def _planners() -> dict[str, str]:
    folder = nnunet_source() / "experiment_planning"
    planners: dict[str, str] = {}
    for path in sorted((folder / "experiment_planners").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and (plans := _default_plans(node)):
                planners.setdefault(plans, node.name)
    return planners


def _default_plans(planner: ast.ClassDef) -> str | None:
    """Return the default of the argument ``plans_name`` of a planner's constructor."""
    for node in planner.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names = [argument.arg for argument in node.args.args][-len(node.args.defaults) :]
            defaults = dict(zip(names, node.args.defaults, strict=False))
            value = defaults.get("plans_name")
            return str(value.value) if isinstance(value, ast.Constant) else None
    return None


def _read(path: Path) -> Any:  # noqa: ANN401 (whatever the file holds)
    """Return the content of a JSON file, read again only when it has changed."""
    return _read_version(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read_version(path: Path, _changed: int) -> Any:  # noqa: ANN401
    return read_json(path)
