"""`python -m hf_i2v.train …` or `accelerate launch -m hf_i2v.train …`: examples/run_video_cls.py, where hf_i2v is
installed. `--config` takes the recipes of examples/recipes by name."""

from .examples import load_example
from .training.command import run_as_command

if __name__ == "__main__":
    raise SystemExit(run_as_command(load_example("run_video_cls").main))
