"""What the machine can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


@cache
def native_bfloat16(device_type: str) -> bool:
    """Whether a device computes in bfloat16 itself; a processor that emulates it is far slower than in float32."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))
