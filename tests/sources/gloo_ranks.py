"""One rank of a plan in a process of its own, beside others on this machine: prints the peaks of both steps.

    python gloo_ranks.py NAME RANK SIZE FILE [patient]

All ranks of a run share the FILE, which is not there before.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
from rank_plans import Net, sharded
from rank_truth import profiled


def net():
    return Net(width=128, blocks=4)


PLANS = {
    "fsdp": sharded(net),
    "fsdp, not resharded": sharded(net, reshard_after_forward=False),
}
"""As `rank_plans.PLANS`, wide enough that a peak is more than what a process group holds for itself."""


def patient(wait):
    """Wait for a collective, and then until gloo's thread, which ran it, has let go of its operands."""

    def call(work, *options):
        done = wait(work, *options)
        time.sleep(0.05)
        return done

    return call


def main(name: str, rank: int, size: int, file: str, patience: bool) -> None:
    """Be one rank, and print the peaks."""
    torch.set_num_threads(1)
    if patience:
        dist.Work.wait = patient(dist.Work.wait)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peaks = profiled(PLANS[name])
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(json.dumps(peaks))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:] == ["patient"])
