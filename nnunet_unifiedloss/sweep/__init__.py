"""Sweeps: a matrix of trainings, run on this computer or on a Slurm cluster."""

from nnunet_unifiedloss.sweep.jobs import Job, Preparation, TrainingJob
from nnunet_unifiedloss.sweep.matrix import plan_jobs
from nnunet_unifiedloss.sweep.status import Status, look, look_at_all, read_queue

__all__ = [
    "Job",
    "Preparation",
    "Status",
    "TrainingJob",
    "look",
    "look_at_all",
    "plan_jobs",
    "read_queue",
]
