"""Which device a stage rank computes on."""

from __future__ import annotations

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Engine


def choose_device(engine: Engine, *, local_stage: int, stages_here: int) -> str:
    """`cpu`, or `cuda:K` by the stage rank's place among the `stages_here` ones of this host.

    Where Slurm shows each task its own GPU only, that one is taken. Raises UserError when there are fewer GPUs than stages
    and `engine.share_devices` does not allow to share them.
    """
    import torch

    count = torch.cuda.device_count() if engine.device != "cpu" else 0
    if count == 0:
        if engine.device == "cuda":
            raise UserError("engine.device: cuda, but no GPU is visible to this rank; set it to auto or cpu, or ask for GPUs")
        return "cpu"
    if count == 1 and stages_here > 1 and not engine.share_devices:
        raise UserError(
            f"{stages_here} stage ranks on this host see one GPU; ask for one GPU per stage (cluster.gpus_per_node), "
            "or set engine.share_devices: true for a trial"
        )
    if count < stages_here and not engine.share_devices:
        raise UserError(
            f"{stages_here} stage ranks on this host, but {count} GPUs; ask for one GPU per stage (cluster.gpus_per_node), "
            "or set engine.share_devices: true for a trial"
        )
    return f"cuda:{local_stage % count}"
