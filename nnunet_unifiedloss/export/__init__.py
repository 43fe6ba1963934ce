"""Export models that run without this package, and verify exported ones."""

from nnunet_unifiedloss.export.archive import ArchiveError
from nnunet_unifiedloss.export.bundle import ExportOptions, ExportResult, export_models
from nnunet_unifiedloss.export.models import Model, select_models
from nnunet_unifiedloss.export.verify import Verification, verify

__all__ = [
    "ArchiveError",
    "ExportOptions",
    "ExportResult",
    "Model",
    "Verification",
    "export_models",
    "select_models",
    "verify",
]
