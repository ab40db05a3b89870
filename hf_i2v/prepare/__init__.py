"""Videos made quick to read: small pictures, key frames close together, the same frames at the same times."""

from .command import main
from .video import Form, prepare_video

__all__ = ["Form", "main", "prepare_video"]
