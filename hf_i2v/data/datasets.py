"""The former name of `clips`."""

from .clips import VideoClips, collate, frames_between, seeded_generator

__all__ = ["VideoClips", "collate", "frames_between", "seeded_generator"]
