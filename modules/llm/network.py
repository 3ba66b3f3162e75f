"""The Llama of the director: random weights in given numbers, or a Hugging Face checkpoint, with rows for scene tokens.

It is transformers' own LlamaForCausalLM, so that an export is a plain Hugging Face model. Letters: B rows, L tokens,
N supervised positions, D width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from modules.checkpoint import read_export
from modules.errors import UserError
from modules.llm.attention import PACKED, make_packing
from modules.llm.config import ArchitectureConfig
from modules.llm.depth import embed_slots
from modules.llm.tokens import SceneVocabulary
from modules.sharding import gathered


def random_network(*, architecture: ArchitectureConfig, vocabulary: SceneVocabulary, bos: int | None) -> nn.Module:
    """A Llama of the given numbers with random weights; under `torch.device("meta")` it takes no memory."""
    numbers = dict(vars(architecture))
    config = LlamaConfig(
        vocab_size=vocabulary.stop,
        rope_parameters={"rope_type": "default", "rope_theta": numbers.pop("rope_theta")},
        bos_token_id=bos,
        eos_token_id=vocabulary.end,
        pad_token_id=None,
        **numbers,
    )
    return network_of(config)


def network_of(config: LlamaConfig) -> nn.Module:
    """A Llama of a transformers configuration, with random weights."""
    return use_packed_attention(AutoModelForCausalLM.from_config(config))


def pretrained_network(name: str, vocabulary: SceneVocabulary, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A Hugging Face Llama checkpoint with rows for the scene tokens, which start at the mean of the text rows.

    Raises:
        UserError: nothing to load under that name, or a model that is not a Llama.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"no model can be loaded from '{name}' ({reason}); give the folder of a Hugging Face Llama checkpoint, "
            "or a hub name on a machine that reaches the hub"
        ) from None
    if config.model_type != "llama":
        raise UserError(
            f"'{name}' is a '{config.model_type}' model; the director needs a Llama (model_type 'llama'), "
            "for example Llama 3 8B or SmolLM2"
        )
    network = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    network.resize_token_embeddings(vocabulary.stop, mean_resizing=False)
    # A checkpoint may hold more rows than its tokenizer has tokens; those that became scene tokens start anew, too.
    with torch.no_grad(), gathered(tables(network)):
        for table in tables(network):
            table[vocabulary.first :] = table[: vocabulary.first].mean(0, dtype=torch.float32).to(table.dtype)
    network.config.eos_token_id = vocabulary.end
    return use_packed_attention(network)


def tables(network: Any) -> list[nn.Parameter]:
    """The weights of embedding and head; one where they are tied."""
    parts = [network.get_input_embeddings().weight, network.get_output_embeddings().weight]
    return parts[:1] if parts[0] is parts[1] else parts


def use_packed_attention(network: Any) -> Any:
    """Switch a Llama to the attention that `hidden_states` drives."""
    network.set_attn_implementation(PACKED)
    network.config.use_cache = False
    return network


@torch.no_grad()
def init_from_codebooks(network: Any, vocabulary: SceneVocabulary, codebooks: Tensor, seed: int = 0) -> None:
    """Give the rows of new tokens the geometry of what they stand for: near codes, edges and durations get near rows.

    Around the mean row: a direction for each kind of token (each depth is one), and within the kind a random projection
    of the codebook, or of sines of an edge or a duration; in all, with the standard deviation of the other rows.

    Args:
        codebooks: (Q, V, C).
    """
    generator = torch.Generator().manual_seed(seed)
    num_edges = vocabulary.pose_start - vocabulary.box_start
    blocks = [(vocabulary.keys_start, _waves(vocabulary.codes.max_keys)), (vocabulary.box_start, _waves(num_edges))]
    for depth, book in enumerate(codebooks.cpu()):
        blocks.append((vocabulary.pose_start + depth * len(book), book - book.mean(0)))
    with gathered(tables(network)):
        for table in tables(network):
            others = table[: vocabulary.first]
            mean, spread, width = others.mean(0), others.std(), table.shape[1]
            for first, features in blocks:
                rows = features @ torch.randn(features.shape[1], width, generator=generator)  # (W, C) -> (W, D)
                rows = rows / rows.std().clamp(min=1e-6) + torch.randn(width, generator=generator)
                table[first : first + len(rows)] = mean + spread * (rows / math.sqrt(2)).to(table)


def _waves(count: int) -> Tensor:
    """Sines and cosines (count, 12) of the numbers 0 .. count - 1, which tell of large and small distances."""
    angles = torch.arange(count)[:, None] / count * math.pi * 2 ** torch.arange(6)
    return torch.cat((angles.sin(), angles.cos()), 1)


def hidden_states(network: Any, input_ids: Tensor, position_ids: Tensor, sample_ids: Tensor) -> Tensor:
    """Last hidden states (B, L, D) of packed rows (B, L); tokens of one sample see only that sample.

    `input_ids` may also be places (B, L, Q) with the ids of a key pose each, for a depth head.
    """
    if input_ids.ndim == 3:
        tokens = {"inputs_embeds": embed_slots(network.get_input_embeddings(), input_ids)}
    else:
        tokens = {"input_ids": input_ids}
    packing = make_packing(sample_ids, position_ids)
    return network.model(**tokens, position_ids=position_ids, packing=packing).last_hidden_state


def next_token_losses(head: nn.Module, states: Tensor, targets: Tensor, num_parts: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the whole vocabulary, and whether the likeliest token is the right one.

    The logits are the largest tensor of a training step by far: they exist for one part of the positions at a time.

    Args:
        states: (N, D) hidden states at supervised positions.
        targets: (N,) ids.
        num_parts: as many calls of the head, whatever N is: of a head that is shared out, every rank must call it as
            often as the others.

    Returns:
        losses (N,) and hits (N,) bool.
    """

    def part(hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(hidden).float()
        return F.cross_entropy(logits, target, reduction="none"), logits.detach().argmax(-1) == target

    if num_parts == 1:
        return part(states, targets)
    parts = [
        checkpoint(part, hidden, target, use_reentrant=False)
        for hidden, target in zip(states.tensor_split(num_parts), targets.tensor_split(num_parts), strict=True)
    ]
    return torch.cat([losses for losses, _ in parts]), torch.cat([hits for _, hits in parts])


def from_export(directory: str | Path) -> nn.Module:
    """The Llama of an `llm` export."""
    directory = Path(directory)
    read_export(directory, "llm")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
