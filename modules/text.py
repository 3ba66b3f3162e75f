"""Text towers: CLIP features of captions by open_clip, or a small tower of the same class trained with its
stage.

B batch, L tokens, D width of the tower (`TextEncoder.width`), E of the pooled embedding
(`TextEncoder.pooled_width`).
"""

import difflib
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from modules.errors import UserError

logger = logging.getLogger(__name__)

SMALL = "small"
LAYERS = ("last", "penultimate")
MAX_PROMPT_CHARACTERS = 1000

# Rows 0 and 1 of the small tower's embedding; the known BPE ids follow in ascending order.
_PAD, _UNKNOWN, _FIRST_KNOWN = 0, 1, 2
_EMPTY_SLOT = torch.iinfo(torch.int64).max
# Where the text tower lies in a checkpoint: CLIP, CustomTextCLIP, and VideoCrafter2's own checkpoint.
_PREFIXES = ("", "text.", "cond_stage_model.model.")


@dataclass
class TextConfig:
    """Which text tower to build, and where its weights come from.

    `model`: "small" (trained with its stage) or the name of an open_clip model, e.g. "ViT-H-14".
    `pretrained`: a file, or an open_clip tag that is already in the local Hugging Face cache; nothing is
    ever downloaded. A tower that is neither trainable nor pretrained takes its weights from whoever loads
    it (a converted checkpoint). `layer`: which block the tokens come from; VideoCrafter2 uses "penultimate"
    (all blocks but the last, then the final norm). `width` to `max_vocabulary` describe the small tower
    only. `fingerprint` is written by an export: the frozen weights that it was trained with.
    """

    model: str = SMALL
    pretrained: str | None = None
    trainable: bool = True
    layer: str = "last"
    width: int = 64
    layers: int = 2
    heads: int = 2
    context_length: int = 77
    max_vocabulary: int = 1000
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.layer not in LAYERS:
            raise UserError(f"text.layer is {self.layer!r}; allowed: {', '.join(LAYERS)}.")
        if self.model == SMALL:
            if self.pretrained is not None:
                raise UserError(
                    "text.pretrained is set, but text.model is 'small', which is trained with its stage: "
                    "name an open_clip model or drop text.pretrained."
                )
            if self.width % self.heads:
                raise UserError(
                    f"text.width is {self.width}, not a multiple of text.heads = {self.heads}: change one."
                )

    @property
    def external(self) -> bool:
        """Whether the weights stay outside of checkpoints and exports, named by path and fingerprint."""
        return self.pretrained is not None and not self.trainable


@dataclass
class TextFeatures:
    """Features of a batch of captions."""

    pooled: Tensor  # (B, E) one embedding a caption
    tokens: Tensor  # (B, L, D)
    mask: Tensor  # (B, L) bool, True for the caption's own tokens (with start and end)


def check_prompt(prompt: str, max_characters: int = MAX_PROMPT_CHARACTERS) -> None:
    """Refuse a prompt that no text tower can honour.

    Raises:
        UserError: the prompt is empty or longer than `max_characters`.
    """
    if not prompt.strip():
        raise UserError('The prompt is empty: say what should be seen, e.g. prompt="A person waves."')
    if len(prompt) > max_characters:
        raise UserError(
            f"The prompt has {len(prompt)} characters, allowed are {max_characters} (a text tower reads "
            "about the first 75 words): shorten it."
        )


class TextEncoder(nn.Module):
    """An open_clip text tower with its tokenizer.

    The small tower has open_clip's tokenizer over a compact vocabulary: `fit_vocabulary` notes in a buffer
    which BPE ids the training captions use, all others are one unknown token. Its batches are cut to the
    longest caption of the call (causal attention: the same values as with padding), so captions that belong
    together go into one call. An open_clip model always gives its whole context, padded with id 0, as
    VideoCrafter2 expects.

    Captions longer than the context are cut, as open_clip does; the first time is logged.
    """

    vocabulary: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        if config.model == SMALL:
            slots = torch.full((config.max_vocabulary,), _EMPTY_SLOT, dtype=torch.int64)
            self.register_buffer("vocabulary", slots)  # ascending BPE ids, then empty slots
            self.tower = TextTransformer(
                context_length=config.context_length,
                vocab_size=_FIRST_KNOWN + config.max_vocabulary,
                width=config.width,
                heads=config.heads,
                layers=config.layers,
                output_dim=None,
            )
        else:
            self.tower = _build_tower(config.model)
        self._warned = False
        if not config.trainable:
            self.requires_grad_(False).eval()
        if config.external:
            self.register_state_dict_post_hook(_drop_external)
            self.register_load_state_dict_pre_hook(_keep_external)

    @property
    def width(self) -> int:
        """Channels of the tokens (D)."""
        return self.tower.width

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled embedding (E)."""
        return self.tower.output_dim or self.tower.width

    @property
    def context_length(self) -> int:
        return self.tower.context_length

    def train(self, mode: bool = True) -> "TextEncoder":
        return super().train(mode and self.config.trainable)

    def fit_vocabulary(self, captions: Iterable[str]) -> None:
        """Fill the small tower's vocabulary with the commonest BPE ids of the captions; other towers: no
        change."""
        if self.config.model != SMALL:
            return
        tokenizer = _tokenizer()
        counts = Counter(token for caption in captions for token in _bpe(caption))
        special = [tokenizer.sot_token_id, tokenizer.eot_token_id]
        known = [token for token, _ in counts.most_common(self.config.max_vocabulary - len(special))]
        if len(known) < len(counts):
            logger.warning(
                "The captions use %d tokens, the small tower keeps the commonest %d (text.max_vocabulary).",
                len(counts),
                len(known),
            )
        ids = torch.tensor(sorted(known + special), dtype=torch.int64, device=self.vocabulary.device)
        self.vocabulary.fill_(_EMPTY_SLOT)
        self.vocabulary[: len(ids)] = ids

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids (B, L) of the tower's vocabulary on the tower's device, padded with 0.

        Raises:
            UserError: the small tower's vocabulary was never fitted.
        """
        tokenizer = _tokenizer()
        limit = self.context_length
        bodies = [_bpe(caption) for caption in captions]
        if not self._warned and any(len(body) > limit - 2 for body in bodies):
            self._warned = True
            longest = max(len(body) for body in bodies)
            logger.warning("A caption has %d tokens; the text tower reads the first %d.", longest, limit - 2)
        rows = [(tokenizer.sot_token_id, *body[: limit - 2], tokenizer.eot_token_id) for body in bodies]
        length = max(len(row) for row in rows) if self.config.model == SMALL else limit
        ids = torch.zeros(len(rows), length, dtype=torch.int64)  # (B, L)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        ids = ids.to(self.tower.positional_embedding.device)
        return self._compact(ids) if self.config.model == SMALL else ids

    def _compact(self, ids: Tensor) -> Tensor:
        """BPE ids -> rows of the small embedding. Order is kept: the end token stays the largest in a
        caption."""
        if bool((self.vocabulary == _EMPTY_SLOT).all()):
            raise UserError(
                "The small text tower has no vocabulary yet: call fit_vocabulary or load an export."
            )
        index = torch.searchsorted(self.vocabulary, ids).clamp_max(len(self.vocabulary) - 1)  # (B, L)
        known = torch.where(self.vocabulary[index] == ids, index + _FIRST_KNOWN, _UNKNOWN)
        return torch.where(ids == 0, _PAD, known)  # BPE id 0 ("!") is open_clip's padding id too

    def forward(self, captions: Sequence[str], whole_context: bool = False) -> TextFeatures:
        """Features of captions; `whole_context` pads also the small tower's to its context length."""
        ids = self.tokenize(captions)
        padding = self.context_length - ids.shape[1] if whole_context else 0
        return self.encode(nn.functional.pad(ids, (0, padding)))

    def encode(self, ids: Tensor) -> TextFeatures:
        """Features of token ids (B, L), L at most the context length; with gradients only if the tower is
        trainable."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trainable):
            length = ids.shape[1]
            hidden = self.tower.token_embedding(ids) + self.tower.positional_embedding[:length]  # (B, L, D)
            causal = torch.full((length, length), -torch.inf, dtype=hidden.dtype, device=ids.device).triu(1)
            before_last = hidden
            for block in self.tower.transformer.resblocks:
                before_last = hidden
                hidden = block(hidden, attn_mask=causal)
            last = self.tower.ln_final(hidden)
            end = ids.argmax(dim=-1)  # (B,) the end token has the largest id
            pooled = last[torch.arange(len(ids), device=ids.device), end]  # (B, D)
            if self.tower.text_projection is not None:
                pooled = pooled @ self.tower.text_projection  # (B, E)
            tokens = last if self.config.layer == "last" else self.tower.ln_final(before_last)
            mask = torch.arange(length, device=ids.device) <= end[:, None]  # (B, L)
        return TextFeatures(pooled=pooled, tokens=tokens, mask=mask)

    def load_pretrained(self) -> None:
        """Read the weights that the config names, if it names any; call it once, before training or sampling.

        Raises:
            UserError: no such file, a tag that is not in the local cache, keys that do not match, or other
            weights
                than the export was trained with.
        """
        if self.config.pretrained is None:
            return
        path = _find_weights(self.config.model, self.config.pretrained)
        self.tower.load_state_dict(_tower_state(path, self.tower))
        found = fingerprint(self.tower)
        if self.config.fingerprint not in (None, found):
            raise UserError(
                f"{path} holds other text weights (fingerprint {found}) than this model was trained with "
                f"({self.config.fingerprint}): set text.pretrained to the original file."
            )

    def export_config(self) -> TextConfig:
        """The config with the fingerprint of the frozen foreign weights, for an export."""
        if not self.config.external:
            return self.config
        return replace(self.config, fingerprint=fingerprint(self.tower))


def fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits over all biases and norms: cheap, and another training gives another one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.ndim == 1:
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@lru_cache(maxsize=65536)
def _bpe(caption: str) -> tuple[int, ...]:
    return tuple(_tokenizer().encode(caption))


def _text_config(name: str) -> tuple[CLIPTextCfg, dict[str, Any]]:
    """An open_clip model's text config and whole config; UserError for a name that has no plain text
    tower."""
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.3)
        raise UserError(
            f"text.model {name!r} is no model of open_clip; nearest: {', '.join(near) or 'none'}; or 'small'."
        )
    text = CLIPTextCfg(**config["text_cfg"])
    foreign = text.hf_model_name or text.hf_tokenizer_name or "siglip" in name.lower()
    unusual = text.embed_cls or text.no_causal_mask or text.proj_bias
    if foreign or unusual or text.pool_type != "argmax" or text.proj_type != "linear":
        raise UserError(
            f"text.model {name!r} has no plain CLIP text tower: take one such as ViT-H-14 or ViT-B-32."
        )
    return text, config


def _build_tower(name: str) -> TextTransformer:
    text, config = _text_config(name)
    return TextTransformer(
        context_length=text.context_length,
        vocab_size=text.vocab_size,
        width=text.width,
        heads=text.heads,
        layers=text.layers,
        mlp_ratio=text.mlp_ratio,
        ls_init_value=text.ls_init_value,  # pyright: ignore[reportArgumentType]
        output_dim=config["embed_dim"],
        act_layer=QuickGELU if config.get("quick_gelu") else nn.GELU,
    )


def _find_weights(model: str, pretrained: str) -> Path:
    path = Path(pretrained)
    if path.is_file():
        return path
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags:
        raise UserError(
            f"text.pretrained is {pretrained!r}: no such file, and no tag of {model} "
            f"(tags: {', '.join(tags) or 'none'})."
        )
    from huggingface_hub import try_to_load_from_cache

    repo, _, name = (open_clip.get_pretrained_cfg(model, pretrained).get("hf_hub") or "").rpartition("/")
    files = [name] if name else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    for file in files:
        cached = try_to_load_from_cache(repo, file) if repo else None
        if isinstance(cached, str):
            return Path(cached)
    fetch = f"run: hf download {repo} {files[0]}" if repo else "download them by hand"
    raise UserError(
        f"The weights {pretrained!r} of {model} are not on this machine, and nothing is downloaded silently; "
        f"{fetch}, or set text.pretrained to a file."
    )


def _tower_state(path: Path, tower: TextTransformer) -> dict[str, Tensor]:
    """The text tower's part of a CLIP checkpoint, keys as in `tower`; UserError when it does not fit."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    wanted = tower.state_dict()
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}ln_final.weight" in state), None)
    if prefix is None:
        raise UserError(
            f"{path} holds no CLIP text tower (no key ln_final.weight): "
            "name an open_clip checkpoint in text.pretrained."
        )
    found = {key: state[prefix + key] for key in wanted if prefix + key in state}
    wrong = [key for key, value in wanted.items() if key not in found or found[key].shape != value.shape]
    if wrong:
        raise UserError(
            f"{path} does not fit text.model: {len(wrong)} of {len(wanted)} weights are missing or of "
            f"another size, e.g. {wrong[0]}: name the model that the file was made for."
        )
    return found


def _drop_external(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}tower.")]:
        del state[key]


def _keep_external(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, TextEncoder)
    state.update({f"{prefix}tower.{key}": value for key, value in module.tower.state_dict().items()})
