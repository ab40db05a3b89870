import pytest
import torch

torch.set_num_threads(1)  # the models are tiny, and threads that wait for one another on busy cores cost minutes


@pytest.fixture
def clip_pixels() -> torch.Tensor:
    """Two clips of four frames, (2, 4, 3, 16, 16)."""
    return torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
