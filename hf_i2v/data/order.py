"""Which samples come when, and to which rank. Pure functions: numbers in, places out.

The order of an epoch is a permutation that depends on (seed, epoch) only. One step of all ranks takes the next
`batch_size * world_size` samples of it, dealt out one by one.

    position   0 1 2 3 | 4 5 6 7 | 8 9          10 samples, 2 ranks, batches of 2
    rank       0 1 0 1 | 0 1 0 1 | 0 1          drop_last: the third step is left out
"""

import hashlib
from collections.abc import Iterator

import torch


def seeded_generator(*what: object) -> torch.Generator:
    """A generator for one purpose. Hashed, because neighbouring seeds of a generator may give related streams."""
    digest = hashlib.sha256(" ".join(map(str, what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def epoch_order(
    num_samples: int, *, seed: int, epoch: int, shuffle: bool, shuffle_buffer_size: int | None = None
) -> torch.Tensor:
    """The order of an epoch, (num_samples,) int64, the same on every rank.

    Args:
        num_samples: rows of the data set.
        seed: of the permutation.
        epoch: other epochs have other orders.
        shuffle: False for the order of the data set.
        shuffle_buffer_size: None for a permutation of everything. Otherwise a sample moves by less than this many
            places, which keeps the reading of large shards local; the order is cut at a random place, so that epochs
            do not start with the same shard.
    """
    order = torch.arange(num_samples)
    if not shuffle or num_samples == 0:
        return order
    generator = seeded_generator("order", seed, epoch)
    if shuffle_buffer_size is None or shuffle_buffer_size >= num_samples:
        return torch.randperm(num_samples, generator=generator)
    order = order.roll(int(torch.randint(num_samples, (), generator=generator)))
    places = torch.arange(num_samples) + shuffle_buffer_size * torch.rand(
        num_samples, generator=generator, dtype=torch.float64
    )
    return order[places.argsort(stable=True)]


def rank_batches(
    num_samples: int, *, batch_size: int, rank: int, world_size: int, drop_last: bool, start: int = 0
) -> Iterator[list[int]]:
    """The positions in the epoch's order that make up the batches of a rank, from position `start` on.

    Every rank gets the same number of batches. Without `drop_last` the last step is shared out evenly, in batches of
    one size: positions of `num_samples` and more are padding, at most one a rank.

    Args:
        num_samples: of an epoch.
        batch_size: samples of a rank in a step.
        rank, world_size: which of how many processes.
        drop_last: leave out an incomplete last step.
        start: where in the epoch to begin.
    """
    step = batch_size * world_size
    while start + step <= num_samples:
        yield list(range(start + rank, start + step, world_size))
        start += step
    if start < num_samples and not drop_last:
        size = -(-(num_samples - start) // world_size)
        yield [start + rank + world_size * i for i in range(size)]
