"""A training run: its options, state, checkpoints and results. The loop itself is examples/run_video_cls.py."""
