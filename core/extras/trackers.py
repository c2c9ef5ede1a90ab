"""Trackers of a run besides its log: Weights & Biases, TensorBoard."""

import os
from collections.abc import Callable

from core import UserError


def start(settings: dict, run_id: str, start_step: int) -> list[Callable[[dict], None]]:
    """Functions that pass each record on, as wandb_log and tensorboard_log ask for."""
    wanted: list[Callable[[dict], None]] = []
    if settings["wandb_log"]:
        import wandb

        name = settings["wandb_run_name"] or os.path.basename(os.path.abspath(settings["out_dir"]))
        project = settings["wandb_project"]
        try:
            run = wandb.init(project=project, name=name, id=run_id, resume="allow", config=settings)
        except Exception as error:  # no account, no network: its errors have no common type
            raise UserError(f"wandb cannot start: {error} Or train without --wandb_log.") from error
        wanted.append(lambda record: run.log(record, step=record["step"]))
    if settings["tensorboard_log"]:
        from torch.utils.tensorboard import SummaryWriter

        # a reader drops the points of this step and later ones, of which most come again
        writer = SummaryWriter(settings["out_dir"], purge_step=start_step)

        def add_scalars(record: dict) -> None:
            for name, value in record.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, record["step"])
            writer.flush()  # what is written outlives a crash

        wanted.append(add_scalars)
    return wanted
