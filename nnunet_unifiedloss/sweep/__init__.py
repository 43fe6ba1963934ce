"""The matrix of trainings: planned, run on this computer or on a Slurm cluster, and watched."""

from nnunet_unifiedloss.sweep.jobs import Job, Preparation, TrainingJob
from nnunet_unifiedloss.sweep.matrix import plan_jobs
from nnunet_unifiedloss.sweep.status import Status, look, look_at_all

__all__ = [
    "Job",
    "Preparation",
    "Status",
    "TrainingJob",
    "look",
    "look_at_all",
    "plan_jobs",
]
