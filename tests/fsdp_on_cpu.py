"""run_video_cls.py under FSDP2 on the CPU, for the tests: torch shards there as on GPUs, but accelerate passes over a
config of FSDP where there is no GPU. Prints what was sharded. `--and_then` as in `in_a_row`."""

import os
import sys

import huggingface_hub
from accelerate.state import AcceleratorState, DistributedType, PartialState
from in_a_row import run_all, run_video_cls
from torch.distributed.tensor import DTensor

prepare_state = AcceleratorState.__init__
make_training_state = run_video_cls.TrainingState


def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    prepare_state(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


def report(model, *args):
    parameters = list(model.parameters())
    sharded = [p for p in parameters if isinstance(p, DTensor)]
    units = sum(type(module).__name__.startswith("FSDP") for module in model.modules())
    share = sum(p.to_local().numel() for p in sharded) / sum(p.numel() for p in sharded) if sharded else 1
    print(f"{len(sharded)} of {len(parameters)} parameters sharded, {units} units, {share:.2f} here")
    return make_training_state(model, *args)


# read by huggingface_hub when it is imported, which may have been before
huggingface_hub.constants.ENDPOINT = os.environ["HF_ENDPOINT"]
huggingface_hub.constants.HF_HUB_DISABLE_XET = True
AcceleratorState.__init__ = with_fsdp
run_video_cls.TrainingState = report
raise SystemExit(run_all(sys.argv[1:]))
