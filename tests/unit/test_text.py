"""Text towers: parity with open_clip, the compact vocabulary, frozen weights by name, error messages."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file
from torch import nn

from modules import text as text_module
from modules.errors import UserError
from modules.text import TextConfig, TextEncoder, check_prompt

CAPTIONS = ["A person walks to the left.", "Two people, from left to right: one waves, one bows!"]
TINY = "tiny-clip"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A small open_clip model with the real tokenizer, known to open_clip by name."""
    config = {
        "embed_dim": 24,
        "vision_cfg": {"layers": 1, "width": 16, "patch_size": 16, "image_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
    }
    original = open_clip.get_model_config
    monkeypatch.setattr(
        open_clip, "get_model_config", lambda name: config if name == TINY else original(name)
    )
    return TINY


def small() -> TextEncoder:
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(width=16, layers=2, heads=2))
    encoder.fit_vocabulary(CAPTIONS)
    return encoder


def test_against_open_clip(tiny: str) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(model=tiny))
    tower = encoder.tower
    assert isinstance(tower, TextTransformer)
    tower.output_tokens = True
    ids = open_clip.get_tokenizer("ViT-B-32")(CAPTIONS)
    assert torch.equal(encoder.tokenize(CAPTIONS), ids)
    pooled, tokens = tower(ids)
    features = encoder(CAPTIONS)
    torch.testing.assert_close(features.pooled, pooled)
    torch.testing.assert_close(features.tokens, tokens)


def test_penultimate_tokens_skip_the_last_block_but_not_the_norm(tiny: str) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(model=tiny, layer="penultimate"))
    tower = encoder.tower
    ids = encoder.tokenize(CAPTIONS)
    hidden = tower.forward_intermediates(ids, indices=[1], output_fmt="NLC")["text_intermediates"][0]
    torch.testing.assert_close(encoder(CAPTIONS).tokens, tower.ln_final(hidden))


def test_small_tower_tells_captions_apart_and_ignores_their_neighbours() -> None:
    encoder = small()
    both = encoder(CAPTIONS)
    alone = encoder(CAPTIONS[:1])
    assert both.tokens.shape[1] == int(both.mask.sum(1).max()) > alone.tokens.shape[1]
    torch.testing.assert_close(both.pooled[:1], alone.pooled)
    torch.testing.assert_close(both.tokens[:1][both.mask[:1]], alone.tokens[0])
    assert (both.pooled[0] - both.pooled[1]).abs().max() > 0.01


def test_compact_vocabulary_is_state_and_maps_the_unknown_to_one_token(tmp_path: Path) -> None:
    encoder = small()
    ids = encoder.tokenize([CAPTIONS[0], "A zebra walks to the left."])
    assert (ids[0] == 1).sum() == 0
    assert (ids[1] == 1).sum() == 1
    restored = TextEncoder(encoder.config)
    with pytest.raises(UserError, match="no vocabulary"):
        restored.tokenize(CAPTIONS)
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(restored.tokenize(CAPTIONS), encoder.tokenize(CAPTIONS))
    torch.testing.assert_close(restored(CAPTIONS).pooled, encoder(CAPTIONS).pooled, rtol=0, atol=0)


def test_vocabulary_keeps_the_commonest(caplog: pytest.LogCaptureFixture) -> None:
    encoder = TextEncoder(TextConfig(width=16, max_vocabulary=4))
    encoder.fit_vocabulary(["left left right", "left right up"])
    assert "keeps the commonest 2" in caplog.text
    start_left_right_up_end = encoder.tokenize(["left right up"])[0]
    assert (start_left_right_up_end == 1).tolist() == [False, False, False, True, False]


def test_long_caption_is_cut_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    encoder = small()
    ids = torch.cat([encoder.tokenize(["walks left " * 60]) for _ in range(3)])
    assert ids.shape == (3, 77)
    assert caplog.text.count("reads the first 75") == 1
    assert ids.argmax(dim=1).tolist() == [76, 76, 76]


def test_external_weights_are_read_by_name_and_left_out_of_the_state(tiny: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = TextEncoder(TextConfig(model=tiny))
    path = tmp_path / "clip.safetensors"
    save_file({f"text.{key}": value.clone() for key, value in source.tower.state_dict().items()}, path)
    encoder = TextEncoder(TextConfig(model=tiny, pretrained=str(path), trainable=False))
    encoder.load_pretrained()
    torch.testing.assert_close(encoder(CAPTIONS).pooled, source(CAPTIONS).pooled)
    assert not encoder(CAPTIONS).tokens.requires_grad
    owner = nn.ModuleDict({"text": encoder, "head": nn.Linear(2, 2)})
    state = owner.state_dict()
    assert set(state) == {"head.weight", "head.bias"}
    owner.load_state_dict(state)
    torch.testing.assert_close(encoder(CAPTIONS).pooled, source(CAPTIONS).pooled)
    exported = encoder.export_config()
    assert exported.fingerprint
    source.tower.get_parameter("ln_final.bias").data.normal_()
    save_file(source.tower.state_dict(), path)
    with pytest.raises(UserError, match="other text weights"):
        TextEncoder(exported).load_pretrained()


def test_frozen_tower_stays_in_eval_mode(tiny: str) -> None:
    owner = nn.Sequential(TextEncoder(TextConfig(model=tiny, trainable=False)))
    owner.train()
    assert not any(module.training for module in owner[0].modules())


def test_paper_tower_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        encoder = TextEncoder(
            TextConfig(model="ViT-H-14", pretrained="laion2b_s32b_b79k", trainable=False, layer="penultimate")
        )
    assert (encoder.width, encoder.pooled_width, len(encoder.tower.transformer.resblocks)) == (1024, 1024, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ViT-H-41"}, "nearest: .*ViT-H-14"),
        ({"model": "roberta-ViT-B-32"}, "no plain CLIP text tower"),
        ({"layer": "middle"}, "allowed: last, penultimate"),
        ({"pretrained": "x"}, "trained with its stage"),
        ({"width": 10, "heads": 4}, "not a multiple"),
    ],
)
def test_config_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TextEncoder(TextConfig(**changes))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [("nowhere.pt", "no such file"), ("laion2b_s32b_b79k", "nothing is downloaded")],
)
def test_missing_weights_are_never_downloaded(
    pretrained: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match=message):
        text_module._find_weights("ViT-H-14", pretrained)


def test_weights_of_another_size_or_kind(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    encoder = TextEncoder(TextConfig(model=tiny, pretrained=str(path), trainable=False))
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="no CLIP text tower"):
        encoder.load_pretrained()
    save_file({"ln_final.weight": torch.zeros(5)}, path)
    with pytest.raises(UserError, match="does not fit"):
        encoder.load_pretrained()


def test_prompts() -> None:
    check_prompt(CAPTIONS[0])
    with pytest.raises(UserError, match="prompt is empty"):
        check_prompt("  ")
    with pytest.raises(UserError, match="10000 characters, allowed are 1000"):
        check_prompt("x" * 10000)
