"""Time and memory of `compare` on many large cases.

Writes phantom results of 200 cases x 6 trainers of 128 x 128 x 128 voxels into a folder, then runs
the command twice: the first run measures, the second reads what was measured.

    python benchmarks/compare_speed.py [--cases 200] [--trainers 6] [--size 128] [-np 2]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.helpers.results_folder import TWO_LABELS, ResultsFolder, ball

TRAINERS = ("", "Dice", "Tversky", "Focal", "FocalTversky", "UnifiedFocal", "Jaccard", "Combo")


def main() -> None:
    """Make the data and time the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--trainers", type=int, default=6, choices=range(1, len(TRAINERS) + 1))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("-np", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = ResultsFolder(Path(root), TWO_LABELS, spacing=(1.5, 1.0, 1.0))
        make(folder, arguments.cases, arguments.trainers, arguments.size)
        environment = os.environ | folder.environment()
        command = [sys.executable, "-m", "nnunet_unifiedloss", "compare", "-d", "4", "-f", "0"]
        command += ["-np", str(arguments.np), "-o", str(Path(root) / "report")]
        for run in ("measured", "from cache"):
            start = time.monotonic()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            print(f"{run}: {time.monotonic() - start:.1f} s")
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"largest process: {largest:.2f} GiB")


def make(folder: ResultsFolder, cases: int, trainers: int, size: int) -> None:
    """Two nested balls in each case, and predictions that are moved and have wrong voxels."""
    generator = np.random.default_rng(0)
    shape = (size,) * 3
    references = {}
    for number in range(cases):
        centre = generator.uniform(0.35, 0.65, 3) * size
        radius = generator.uniform(0.05, 0.3) * size
        labels = ball(shape, centre, radius, (1.5, 1, 1)).astype(np.uint8)
        labels[ball(shape, centre, radius / 2, (1.5, 1, 1))] = 2
        references[f"case_{number:03d}"] = labels
        if len(references) == 20 or number == cases - 1:
            folder.add_cases(references)
            references = {}
    names = [f"case_{number:03d}" for number in range(cases)]
    for index, trainer in enumerate(TRAINERS[:trainers]):

        def predict(reference: np.ndarray, number: int, index: int = index) -> np.ndarray:
            moved = np.roll(reference, index % 3 + number % 2, axis=-1)
            for spot in np.random.default_rng((index, number)).integers(0, size - 3, (5, 3)):
                moved[tuple(slice(start, start + 3) for start in spot)] = 1
            return moved

        folder.add_training(f"nnUNetTrainer{trainer}", names, predict)
        print(f"made nnUNetTrainer{trainer}")


if __name__ == "__main__":
    main()
