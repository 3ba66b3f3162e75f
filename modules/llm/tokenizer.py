"""Text tokenizers: one trained on the captions (demo), or any Hugging Face fast tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modules.errors import UserError

BOS, PAD = "<bos>", "<pad>"


def train_tokenizer(captions: Iterable[str], *, vocabulary_size: int) -> str:
    """Train a byte-level BPE on captions and return it as a JSON string (plain data for a checkpoint).

    Frequent words become one token each; all 256 bytes are in the vocabulary, so that any prompt can be encoded and
    comes back exactly.
    """
    tokenizer = Tokenizer(models.BPE())
    # One digit a token: numbers that the captions never held are still spelled from known parts.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=[BOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer.to_str()


def tokenizer_from_json(content: str) -> Any:
    """The Hugging Face tokenizer of a string that `train_tokenizer` made."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(content),
        bos_token=BOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str) -> Any:
    """A Hugging Face tokenizer by folder or hub name.

    Raises:
        UserError: nothing can be loaded under that name.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"no tokenizer can be loaded from '{name}' ({reason}); give the folder of a Hugging Face checkpoint, "
            "or a hub name on a machine that reaches the hub"
        ) from None
