import pytest
import torch


@pytest.fixture
def clip_pixels() -> torch.Tensor:
    """Two clips of four frames, (2, 4, 3, 16, 16)."""
    return torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
