"""nnU-Net's postprocessing.pkl: a pickle, kept to the one function that nnU-Net puts into it."""

from __future__ import annotations

import io
import pickle
from typing import Any

from nnunet_unifiedloss.export.archive import ArchiveError
from nnunet_unifiedloss.export.checkpoints import plain

_FUNCTION = (
    "nnunetv2.postprocessing.remove_connected_components",
    "remove_all_but_largest_component_from_segmentation",
)
# nnU-Net leaves NumPy's numbers in its arguments
_NUMPY = {("numpy", "dtype")} | {
    (f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")
}


class _Unpickler(pickle.Unpickler):
    """Finds nothing but what is allowed, so that nothing else can be called."""

    def __init__(self, content: bytes, allowed: set[tuple[str, str]]) -> None:
        super().__init__(io.BytesIO(content))
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return super().find_class(module, name)


def clean_postprocessing(content: bytes) -> bytes:
    """A ``postprocessing.pkl`` that was written here, with plain numbers in it.

    Raises:
        ValueError: It holds more than nnU-Net's own postprocessing.
    """
    functions, arguments = _load(content, {_FUNCTION} | _NUMPY)
    return pickle.dumps((functions, plain(arguments, "postprocessing")), protocol=4)


def check_postprocessing(content: bytes, name: str) -> None:
    """Refuse a ``postprocessing.pkl`` that would run anything but nnU-Net's own function.

    Raises:
        ArchiveError: It would, or it is damaged.
    """
    try:
        _load(content, {_FUNCTION})
    except ValueError as error:
        raise ArchiveError(f"{name}: not nnU-Net's postprocessing ({error})") from error


def _load(content: bytes, allowed: set[tuple[str, str]]) -> Any:  # noqa: ANN401
    try:
        functions, arguments = _Unpickler(content, allowed).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(str(error)) from error
    return functions, arguments
