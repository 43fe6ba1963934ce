"""The commands ``export`` and ``verify``."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_unifiedloss.results.trainings import DEFAULT_FOLDS, DEFAULT_PLANS

_STARTING = "Starting (imports PyTorch and nnU-Net)"


def add_export_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of export: nnU-Net's own, and what goes into the archive."""
    option = command.add_argument
    option("-d", metavar="DATASET", required=True, help="number or name of the data set")
    option("-c", metavar="NAME", nargs="+", required=True, help="configurations, as 2d 3d_fullres")
    option("-tr", metavar="TRAINER", required=True, help="name of the trainer")
    option("-p", metavar="PLANS", default=DEFAULT_PLANS, help="(default: %(default)s)")
    option(
        "-f",
        metavar="FOLD",
        nargs="+",
        default=DEFAULT_FOLDS,
        help="folds, or all (default: 0 to 4)",
    )
    final = ("checkpoint_final.pth",)
    option("-chk", metavar="FILE", nargs="+", default=final, help="(default: checkpoint_final.pth)")
    option("-o", metavar="FILE", required=True, type=Path, help="the zip archive to write")
    option(
        "--onnx",
        nargs="?",
        choices=("ensemble", "folds"),
        const="ensemble",
        help="add an ONNX graph: of the mean of the folds (default), or one of each fold",
    )
    option("--with-training-state", action="store_true", help="keep optimizer state and logs")
    option("--notes", metavar="FILE", type=Path, help="Markdown on intended use, for the card")
    option("--no-verify", action="store_true", help="do not run the exported model to compare")


def add_verify_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of verify."""
    command.add_argument("archive", metavar="FILE", type=Path, help="the zip archive")


def run_export(arguments: argparse.Namespace) -> int:
    """Write the archive, print its model card."""
    from nnunet_unifiedloss._support.processes import termination_as_exception
    from nnunet_unifiedloss._support.terminal import make_console
    from nnunet_unifiedloss.results.trainings import dataset_name, nnunet_folder

    results, dataset = nnunet_folder("nnUNet_results"), dataset_name(arguments.d)
    notes = None if arguments.notes is None else _text("--notes", arguments.notes)
    console = make_console()
    # a termination signal removes the draft of the archive, as Ctrl-C does
    with termination_as_exception(), console.status(_STARTING) as status:
        from nnunet_unifiedloss.export import ExportOptions, export_models, select_models

        models = select_models(
            results,
            dataset,
            arguments.c,
            trainer=arguments.tr,
            plans=arguments.p,
            folds=arguments.f,
            checkpoints=arguments.chk,
        )
        options = ExportOptions(
            not arguments.no_verify, arguments.with_training_state, arguments.onnx, notes
        )
        result = export_models(models, arguments.o, options=options, progress=status.update)
    print(result.card)
    saved = 1 - result.bytes_after / result.bytes_before
    print(f"checkpoints: {_megabytes(result.bytes_before)} before, ", end="")
    print(f"{_megabytes(result.bytes_after)} exported: {saved:.0%} saved")
    print(f"archive: {result.path}, {_megabytes(result.path.stat().st_size)}")
    print(f"SHA-256: {result.sha256}")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Check an archive."""
    from nnunet_unifiedloss._support.terminal import make_console

    console = make_console()
    with console.status(_STARTING) as status:
        from nnunet_unifiedloss.export import verify

        result = verify(arguments.archive, progress=status.update)
    print(f"{result.files} files with the SHA-256 of the manifest")
    print(f"{result.checkpoints} checkpoints load without running code")
    if result.difference is not None:
        print(f"predictions on the sample: logits differ by {result.difference:.1g} of the largest")
    if result.graph_difference is not None:
        print(f"ONNX graphs: logits differ from torch's by {result.graph_difference:.1g}")
    for note in result.notes:
        print(f"not verified: {note}")
    print(f"SHA-256: {result.sha256}")
    return 0


def _text(flag: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{flag} {path}: not readable as UTF-8 text ({error})") from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
