"""run_video_cls.py under DeepSpeed on the CPU, for the tests: with gloo it shards there as on GPUs, but accelerate
passes over a config of DeepSpeed where there is no GPU."""

import os
import sys
from pathlib import Path

import deepspeed
from accelerate.state import AcceleratorState, DistributedType, PartialState

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import run_video_cls

prepare_state = AcceleratorState.__init__


def with_deepspeed(self, *args, deepspeed_plugin=None, **kwargs):
    prepare_state(self, *args, deepspeed_plugin=deepspeed_plugin, **kwargs)
    if deepspeed_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
        deepspeed_plugin.set_mixed_precision(os.environ["ACCELERATE_MIXED_PRECISION"])
        deepspeed_plugin.select(_from_accelerator_state=True)
        self.deepspeed_plugins = deepspeed_plugin


AcceleratorState.__init__ = with_deepspeed
run_video_cls.main()
