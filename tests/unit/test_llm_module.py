"""Training of the director: packing, losses, checkpoints and exports, with a real (tiny) pose tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from modules.checkpoint import load_frozen, save_export
from modules.errors import UserError
from modules.llm.config import ArchitectureConfig, DepthHeadConfig, LLMConfig
from modules.llm.data import next_token_targets, pack, place_pose_tokens
from modules.llm.director import Director
from modules.llm.module import KindScores, LLMModule
from modules.llm.network import hidden_states, init_from_codebooks, next_token_losses, pretrained_network
from modules.llm.scenes import scene_from_plan
from modules.llm.tokenizer import tokenizer_from_json
from modules.llm.tokens import DEPTH, TEXT, ScenePlan
from modules.optim import OptimConfig
from modules.pose.boxes import box_to_tokens
from modules.pose.scene import Clip, Scene, make_person
from modules.vqvae.config import NetworkConfig, VQVAEConfig
from modules.vqvae.network import PoseTokenizer

NUM_CLIPS = 6


@pytest.fixture(scope="module")
def vqvae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained pose tokenizer whose codebooks are not all the same."""
    torch.manual_seed(0)
    config = VQVAEConfig(
        network=NetworkConfig(num_quantizers=3, codebook_size=8, latent_dim=4, width=8, dilations=[1]), num_keys=6
    )
    network = PoseTokenizer(config.network, config.quantizer)
    network.quantizer.codebooks.normal_()
    path = tmp_path_factory.mktemp("vqvae") / "export"
    save_export(path, stage="vqvae", config=dataclasses.asdict(config), state=network.state_dict(), info={})
    return path


def make_clip(number: int) -> Clip:
    """One to three people, 11 to 51 frames, somebody unseen for a while."""
    rng = np.random.default_rng(number)
    frames, people = 11 + 8 * number, 1 + number % 3
    persons = []
    for i in range(people):
        joints = rng.uniform(0, 10, (frames, 18, 2)) + 20 * i
        persons.append(make_person(joints, rng.random((frames, 18)) < 0.9, 64, 64))
    prompt = f"A clip of {people} people for {frames / 30:.1f} seconds, number {number}."
    scene = Scene(64, 64, 30.0, np.arange(frames) / 30, persons, prompt)
    return Clip(key=str(number), scene=scene, caption=prompt)


def make_clips() -> list[Clip]:
    return [make_clip(number) for number in range(NUM_CLIPS)]


def make_config(vqvae: Path, **changes: Any) -> LLMConfig:
    numbers = ArchitectureConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, initializer_range=0.1,
    )  # fmt: skip
    optim = OptimConfig(lr=3e-3, warmup_steps=2)
    settings = {"architecture": numbers, "text_vocabulary": 300, "max_people": 3, "optim": optim}
    return LLMConfig(vqvae=str(vqvae), **(settings | changes))


def make_module(config: LLMConfig, max_steps: int = 10) -> LLMModule:
    torch.manual_seed(1)
    module = LLMModule(dataclasses.asdict(config), max_steps)
    module.setup_data(make_clips)
    module.setup("fit")
    module.on_fit_start()
    return module


def make_batch(module: LLMModule, numbers: list[int], train: bool = False, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return module.collate([item for n in numbers for item in module.encode(make_clip(n), rng, train)])


class Batches(torch.utils.data.Dataset):
    """The same small batches in every pass."""

    def __init__(self, module: LLMModule) -> None:
        self.module = module

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return make_batch(self.module, [2 * index, 2 * index + 1])


def fit(module: LLMModule, steps: int, folder: Path, ckpt_path: Path | None = None) -> L.Trainer:
    loader = torch.utils.data.DataLoader(Batches(module), batch_size=None)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=1, num_sanity_val_steps=0, val_check_interval=3,
        check_val_every_n_epoch=None, max_epochs=-1, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def true_sequences(module: LLMModule, numbers: list[int]) -> list[list[int]]:
    """The scenes of some clips through the public grammar alone."""
    vqvae: Any = load_frozen(module.config.vqvae, "vqvae")
    sequences = []
    for item in (module.encode(make_clip(n), np.random.default_rng(0), False)[0] for n in numbers):
        mask = torch.ones(item["poses"].shape[:2], dtype=torch.bool)
        codes = vqvae.encode(torch.from_numpy(item["poses"]), torch.from_numpy(item["visibility"]), mask)
        sequences.append(module.grammar.encode_scene(item["caption"], item["boxes"], codes.numpy()))
    return sequences


@pytest.mark.parametrize("pack_length", [0, 90, 400])
def test_a_packed_batch_holds_the_scenes_of_its_clips(vqvae: Path, pack_length: int) -> None:
    module = make_module(make_config(vqvae, pack_length=pack_length))
    numbers = list(range(NUM_CLIPS))
    batch = make_batch(module, numbers)
    codes = module._pose_tokenizer[0].encode(batch["poses"], batch["visibility"], batch["key_mask"])
    ids = place_pose_tokens(batch, codes, module.grammar)
    for number, sequence in enumerate(true_sequences(module, numbers)):
        assert ids[batch["sample_ids"] == number].tolist() == sequence
        assert batch["position_ids"][batch["sample_ids"] == number].tolist() == list(range(len(sequence)))
    assert (ids[batch["sample_ids"] == -1] == 0).all()


@pytest.mark.parametrize("pack_length", [0, 400])
def test_packed_samples_do_not_see_each_other(vqvae: Path, pack_length: int) -> None:
    """Every token's loss is that of the sample alone in plain transformers."""
    module = make_module(make_config(vqvae, pack_length=pack_length))
    plain = LlamaForCausalLM(module.network.config)
    plain.load_state_dict(module.network.state_dict())
    plain.set_attn_implementation("eager")
    batch = make_batch(module, list(range(NUM_CLIPS)))
    with torch.no_grad():
        packed = module.model_step(batch)
        alone = []
        for sequence in true_sequences(module, list(range(NUM_CLIPS))):
            ids = torch.tensor([sequence])
            logits = plain(ids).logits[0, :-1]
            alone.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    # Rows may hold the samples in another order.
    order = [n for row in batch["sample_ids"] for n in dict.fromkeys(row.tolist()) if n >= 0]
    torch.testing.assert_close(packed.losses, torch.cat([alone[n] for n in order]), rtol=1e-4, atol=1e-5)


def test_the_packed_gradient_is_that_of_plain_rows(vqvae: Path) -> None:
    """Also against transformers' own mask for packed rows, which it derives from the positions."""
    module = make_module(make_config(vqvae))
    batch = make_batch(module, [0, 3, 4])
    ids = batch["input_ids"]
    ours = hidden_states(module.network, ids, batch["position_ids"], batch["sample_ids"])
    ours.square().sum().backward()
    plain = LlamaForCausalLM(module.network.config)
    plain.load_state_dict(module.network.state_dict())
    plain.set_attn_implementation("sdpa")
    theirs = plain.model(input_ids=ids, position_ids=batch["position_ids"], use_cache=False).last_hidden_state
    theirs.square().sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for mine, other in zip(module.network.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_loss_on_the_scene_or_on_everything(vqvae: Path) -> None:
    module = make_module(make_config(vqvae))
    batch = make_batch(module, [0, 1])
    sequences = true_sequences(module, [0, 1])
    scene = module.grammar.vocabulary.scene
    whole = [token for sequence in sequences for token in sequence[1:]]
    after = [token for sequence in sequences for token in sequence[sequence.index(scene) + 1 :]]
    ids = torch.tensor([sum(sequences, [])])
    for loss_on, expected in (("all", whole), ("scene", after)):
        places, targets = next_token_targets(ids, batch["sample_ids"], module.grammar, loss_on)
        assert targets.tolist() == expected
        assert ids.flatten()[places + 1].tolist() == expected


def test_chunks_of_the_head_change_nothing(vqvae: Path) -> None:
    module = make_module(make_config(vqvae))
    states, targets = torch.randn(23, 32, requires_grad=True), torch.randint(0, 300, (23,))
    results = []
    for num_parts in (1, 5):
        states.grad = None
        losses, hits = next_token_losses(module.network.lm_head, states, targets, num_parts)
        losses.mean().backward()
        results.append((losses.detach(), hits, states.grad))
    torch.testing.assert_close(*results)


def test_scores_of_kinds_are_means_over_tokens(vqvae: Path) -> None:
    module = make_module(make_config(vqvae))
    names = module.grammar.vocabulary.kind_names
    whole, parts = KindScores(names), KindScores(names)
    steps = [module.model_step(make_batch(module, numbers)) for numbers in ([0, 1, 2], [3], [4, 5])]
    for step in steps:
        parts.update(step)
    whole.update(module.model_step(make_batch(module, list(range(NUM_CLIPS)))))
    scores = parts.compute()
    torch.testing.assert_close(scores, whole.compute(), rtol=1e-4, atol=1e-5)
    scene = torch.cat([step.losses[step.kinds > TEXT] for step in steps])
    torch.testing.assert_close(scores["loss"], scene.mean())
    depth = torch.cat([step.losses[step.kinds == DEPTH + 1] for step in steps])
    torch.testing.assert_close(scores["loss_depth1"], depth.mean())


def test_start_jitter_keeps_the_number_of_keys(vqvae: Path) -> None:
    module = make_module(make_config(vqvae))
    clip = make_clip(2)  # 27 frames: keys at 0, 10, 20, and starts 0..6
    seen = set()
    for seed in range(60):
        (item,) = module.encode(clip, np.random.default_rng(seed), True)
        assert item["poses"].shape[1] == 3
        seen.add(item["poses"].tobytes())
    assert len(seen) == 7
    (first,), (again,) = (module.encode(clip, np.random.default_rng(seed), False) for seed in (1, 2))
    np.testing.assert_array_equal(first["poses"], again["poses"])


def test_people_stand_in_the_order_of_the_grammar(vqvae: Path) -> None:
    module = make_module(make_config(vqvae, max_people=2))
    clip = make_clip(2)
    clip.scene.persons.reverse()
    (item,) = module.encode(clip, np.random.default_rng(0), False)
    assert len(item["boxes"]) == 2
    assert (np.diff(item["boxes"][:, 0]) >= 0).all()
    wanted = sorted(box_to_tokens(p.box, 64, 64).tolist() for p in clip.scene.persons[:2])
    assert item["boxes"].tolist() == wanted


def test_pack_fits_rows_and_loses_nothing() -> None:
    lengths = [30, 90, 5, 60, 60, 10, 120, 1]
    rows = pack(lengths, 100)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 100 for row in rows if row != [6])
    assert len(rows) == 4
    assert pack(lengths, 0) == [list(range(len(lengths)))]


def test_training_learns_and_resumes_bitwise(vqvae: Path, tmp_path: Path) -> None:
    """A run stopped at step 6 and continued to 9 ends where an uninterrupted one ends."""
    whole = LLMModule(dataclasses.asdict(make_config(vqvae)), max_steps=9)
    torch.manual_seed(0)
    whole.setup_data(make_clips)
    trainer = fit(whole, 6, tmp_path)
    first = trainer.callback_metrics["train/loss"]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = LLMModule(dataclasses.asdict(make_config(vqvae)), max_steps=9)
    trainer = fit(resumed, 9, tmp_path, tmp_path / "a.ckpt")
    assert trainer.callback_metrics["train/loss"] < first
    assert {"val/loss", "val/loss_box", "val/accuracy_depth0", "val/loss_text"} <= trainer.callback_metrics.keys()

    again = LLMModule(dataclasses.asdict(make_config(vqvae)), max_steps=9)
    torch.manual_seed(0)
    again.setup_data(make_clips)
    fit(again, 9, tmp_path)
    for mine, other in zip(resumed.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert resumed.tokenizer.get_vocab() == again.tokenizer.get_vocab()


def test_the_export_is_a_plain_hugging_face_model(vqvae: Path, tmp_path: Path) -> None:
    module = make_module(make_config(vqvae))
    module.export(tmp_path / "export", {"step": 3})
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert type(network) is LlamaForCausalLM
    assert len(tokenizer) == network.config.vocab_size == module.grammar.vocabulary.stop
    ids = torch.tensor([true_sequences(module, [1])[0]])
    batch = make_batch(module, [1])
    with torch.no_grad():
        expected = hidden_states(module.network, ids, batch["position_ids"], batch["sample_ids"])
        torch.testing.assert_close(network.eval().model(ids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    generated = network.generate(ids[:, :5], attention_mask=torch.ones(1, 5), max_new_tokens=3)
    assert generated.shape[1] <= 8

    director = Director.from_export(tmp_path / "export")
    (plan,) = director.plan(["two people"], seeds=4, num_people=2)
    (same,) = module.director().plan(["two people"], seeds=4, num_people=2)
    np.testing.assert_array_equal(plan.codes, same.codes)
    assert director.vqvae_sha256
    assert (director.stride, director.fps) == (10, 30.0)


@pytest.mark.parametrize("layers", [0, 1])
def test_pictures_of_validation(vqvae: Path, layers: int) -> None:
    module = make_module(make_config(vqvae, depth_head=DepthHeadConfig(num_layers=layers, width=16)))
    images = module.sample_images(make_batch(module, [0, 1, 2]))
    assert set(images) == {"scene0", "scene1", "scene2"}
    assert all(image.ndim == 3 and image.dtype == np.uint8 and image.max() > 0 for image in images.values())


def test_a_true_plan_becomes_the_reconstruction_of_the_tokenizer(vqvae: Path) -> None:
    """Boxes exactly; the poses are those that the pose tokenizer makes of its own codes, in the box."""
    network: Any = load_frozen(vqvae, "vqvae")
    boxes = np.array([[10, 20, 110, 250], [100, 0, 255, 255]])
    codes = np.random.default_rng(0).integers(0, 8, (2, 4, 3))
    scene = scene_from_plan(
        ScenePlan("x", boxes, codes), network, width=128, height=96, fps=30.0, stride=10
    )
    decoded = network.decode(torch.from_numpy(codes), torch.ones(2, 4, dtype=torch.bool))
    for person, box, poses, seen in zip(scene.persons, boxes, decoded.poses, decoded.visibility, strict=True):
        edges = box / 255 * [128, 96, 128, 96]
        np.testing.assert_allclose(person.box, edges, rtol=1e-5)
        half = max(edges[2] - edges[0], edges[3] - edges[1]) / 2
        expected = poses.detach().numpy() * half + (edges[:2] + edges[2:]) / 2
        np.testing.assert_allclose(person.joints[seen.numpy()], expected[seen.numpy()], rtol=1e-4, atol=1e-3)
        assert (person.joints[~seen.numpy()] == 0).all()
    np.testing.assert_allclose(scene.times, [0, 1 / 3, 2 / 3, 1])


def save_llama(folder: Path, vqvae: Path, rows: int) -> LLMModule:
    """A Llama checkpoint with a tokenizer that knows nothing of scenes."""
    module = LLMModule(make_config(vqvae), max_steps=1)
    module.setup_data(make_clips)
    tokenizer_from_json(module._origin["tokenizer"]).save_pretrained(folder)
    torch.manual_seed(3)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=rows, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(folder)
    return module


@pytest.mark.parametrize("spare", [0, 5])
def test_a_pretrained_llama_keeps_its_rows_and_new_ones_are_the_mean(vqvae: Path, tmp_path: Path, spare: int) -> None:
    text = save_llama(tmp_path, vqvae, 300).grammar.vocabulary.first
    save_llama(tmp_path, vqvae, text + spare)
    before = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    module = make_module(make_config(vqvae, pretrained=str(tmp_path)))
    after = module.network.state_dict()
    assert module.network.config.vocab_size == module.grammar.vocabulary.stop
    for name, value in before.items():
        if "embed_tokens" in name or "lm_head" in name:
            assert torch.equal(after[name][:text], value[:text])
            mean = value[:text].mean(0) if spare else value.mean(0)
            torch.testing.assert_close(after[name][text:], mean.expand_as(after[name][text:]), rtol=0, atol=1e-3)
        else:
            assert torch.equal(after[name], value)


def test_new_rows_have_the_geometry_of_codes_and_edges(vqvae: Path) -> None:
    """Distances between rows follow those between codes, edges and durations; kinds of tokens lie apart."""
    module = make_module(make_config(vqvae, embedding_init="codebook"))
    vocabulary = module.grammar.vocabulary
    codebooks = torch.randn(3, 8, 4)
    init_from_codebooks(module.network, vocabulary, codebooks)
    for table in (module.network.get_input_embeddings().weight, module.network.get_output_embeddings().weight):
        rows = table.detach()[vocabulary.pose_start :].view(3, 8, -1)
        assert rows.std().item() == pytest.approx(0.1, rel=0.2)
        for q in range(3):
            pairs = torch.stack([torch.pdist(rows[q]), torch.pdist(codebooks[q])])
            assert torch.corrcoef(pairs)[0, 1] > 0.8
        assert torch.pdist(rows.mean(1)).min() > 0.2
        edges = table.detach()[vocabulary.box_start : vocabulary.pose_start]
        apart = [(edges[step:] - edges[: len(edges) - step]).norm(dim=1).mean() for step in (1, 4, 40)]
        assert apart[0] < 0.5 * apart[1]
        assert apart[1] < apart[2]


def test_a_checkpoint_that_is_no_llama_is_refused(vqvae: Path, tmp_path: Path) -> None:
    vocabulary = save_llama(tmp_path / "llama", vqvae, 300).grammar.vocabulary
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="is a 'gpt2' model; the director needs a Llama"):
        pretrained_network(str(tmp_path / "gpt2"), vocabulary)
    with pytest.raises(UserError, match="no model can be loaded from"):
        pretrained_network(str(tmp_path / "nothing"), vocabulary)


def test_the_pose_tokenizer_must_be_there(tmp_path: Path) -> None:
    module = LLMModule(make_config(tmp_path / "nothing"), max_steps=1)
    with pytest.raises(UserError, match="is not a vqvae export"):
        module.setup_data(make_clips)


def test_a_caption_too_long_for_the_context_is_cut(vqvae: Path) -> None:
    module = make_module(make_config(vqvae))
    clip = dataclasses.replace(make_clip(0), caption="very long " * 500)
    batch = module.collate(module.encode(clip, np.random.default_rng(0), False))
    assert batch["input_ids"].shape[1] <= 512
    assert module.collate.truncated == 1
    scene = module.grammar.vocabulary.scene
    assert (batch["input_ids"] == scene).sum() == 1
