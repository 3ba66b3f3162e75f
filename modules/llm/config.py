"""Configuration of the director."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from modules.errors import UserError
from modules.optim import OptimConfig


@dataclass
class ArchitectureConfig:
    """Numbers of a Llama, under the names of transformers' LlamaConfig."""

    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    max_position_embeddings: int = 1024  # context, tokens
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"architecture.hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"architecture.num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )


@dataclass
class DepthHeadConfig:
    """A small network that writes all ids of a key pose from one step of the Llama (`modules/llm/depth.py`)."""

    num_layers: int = 0  # 0: none, every id is a step of the Llama
    width: int = 256

    def __post_init__(self) -> None:
        if self.num_layers < 0 or self.width < 1:
            raise UserError(
                f"depth_head has {self.num_layers} layers of width {self.width}; wanted >= 0 (0: none) and >= 1"
            )


@dataclass
class LLMConfig:
    """A Llama that writes scenes: how many people, where, and their key poses.

    The shape of the codebooks, the stride and the longest scene come from the `vqvae` export.
    """

    vqvae: str = "runs/vqvae/demo/export"  # export of the pose tokenizer
    # Folder or hub name of a Hugging Face Llama checkpoint; None: random weights in the numbers of `architecture`.
    pretrained: str | None = None
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    # Folder or hub name of a tokenizer; None: that of `pretrained`, or one trained on the captions.
    tokenizer: str | None = None
    text_vocabulary: int = 1500  # size of a tokenizer trained on the captions; otherwise that of `tokenizer`
    embedding_init: Literal["mean", "codebook"] = "mean"  # new rows: the mean row, or the geometry of codes and edges
    depth_head: DepthHeadConfig = field(default_factory=DepthHeadConfig)
    max_people: int = 4
    loss_on: Literal["all", "scene"] = "all"  # every token (paper), or what follows <scene>
    start_jitter: bool = True  # training clips start up to one stride later, with the same number of keys
    pack_length: int = 0  # tokens in a packed row; 0: one row of whatever length the batch has
    head_chunk: int = 8192  # positions whose logits are held at a time
    gradient_checkpointing: bool = False
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        if self.max_people < 1:
            raise UserError(f"max_people is {self.max_people}; it must be at least 1")
        if self.pretrained is not None and self.pretrained == "":
            raise UserError("pretrained is empty; give a folder, a hub name, or null")
        if self.text_vocabulary < 300:
            raise UserError(f"text_vocabulary is {self.text_vocabulary}; it must be at least 300 (256 bytes and words)")
        if self.pack_length < 0 or self.head_chunk < 1:
            raise UserError(f"pack_length is {self.pack_length} and head_chunk {self.head_chunk}; wanted >= 0 and >= 1")
