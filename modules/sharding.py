"""Parameters of which each rank holds a part (DeepSpeed's ZeRO-3); for all others these functions do nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def gathered(params: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within it parameters that are shared out are whole; what rank 0 makes of them is shared out afterwards."""
    sharded = [param for param in params if hasattr(param, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0):
        yield


def full_shape(param: nn.Parameter) -> torch.Size:
    """Shape of a parameter, also of one of which this rank holds a part."""
    return getattr(param, "ds_shape", param.shape)
