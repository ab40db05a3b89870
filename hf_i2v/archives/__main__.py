"""`python -m hf_i2v.archives …` or `accelerate launch -m hf_i2v.archives …`: examples/predict_videos.py, where hf_i2v
is installed."""

from ..examples import load_example
from ..training.command import run_as_command

if __name__ == "__main__":
    raise SystemExit(run_as_command(load_example("predict_videos").main))
