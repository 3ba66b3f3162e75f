"""The pose tokenizer: codes, padding, prefixes of depths, codebooks that live, reload, export."""

from __future__ import annotations

import copy
import dataclasses
import socket
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from modules.checkpoint import load_frozen
from modules.errors import UserError
from modules.metrics.codebook import CodebookUsage
from modules.metrics.pose import PoseError
from modules.pose.augment import reshape
from modules.pose.boxes import normalise
from modules.pose.scene import Clip, Scene, make_person
from modules.pose.skeleton import NUM_JOINTS
from modules.vqvae.config import NetworkConfig, QuantizerConfig, VQVAEConfig
from modules.vqvae.data import Encode, collate, hide
from modules.vqvae.losses import mean_distance, tokenizer_losses
from modules.vqvae.module import VQVAEModule
from modules.vqvae.network import PoseTokenizer
from modules.vqvae.quantizer import ResidualQuantizer, kmeans, nearest

TINY = NetworkConfig(num_quantizers=3, codebook_size=16, latent_dim=8, width=16, dilations=[1, 2])
Batch = tuple[Tensor, Tensor, Tensor]


def make_batch(batch: int = 12, keys: int = 20, seed: int = 0) -> Batch:
    """Smooth motions of random lengths with a few unseen joints: poses, visibility, key_mask."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(keys)[:, None, None] / 6
    base, swing = torch.randn(2, batch, 1, NUM_JOINTS, 2, generator=generator)
    phase = 6 * torch.rand(batch, 1, 1, 1, generator=generator)
    poses = 0.5 * base + 0.3 * swing * torch.sin(phase + time)
    lengths = torch.randint(min(4, keys), keys + 1, (batch, 1), generator=generator)
    key_mask = torch.arange(keys) < lengths
    visibility = (torch.rand(batch, keys, NUM_JOINTS, generator=generator) < 0.9) & key_mask[..., None]
    return poses * visibility[..., None], visibility, key_mask


def loss_of(network: PoseTokenizer, batch: Batch) -> Tensor:
    parts = tokenizer_losses(network(*batch), *batch)
    return parts.position + parts.velocity + 0.1 * parts.commitment + 0.1 * parts.visibility


def train(network: PoseTokenizer, steps: int, start: int = 0) -> list[float]:
    """Losses of plain gradient descent, which keeps no state of its own."""
    optimizer = torch.optim.SGD(network.parameters(), lr=5e-3)
    losses = []
    network.train()
    for step in range(start, start + steps):
        loss = loss_of(network, make_batch(seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained() -> PoseTokenizer:
    """A network whose codebooks are in use."""
    torch.manual_seed(0)
    network = PoseTokenizer(TINY)
    train(network, 30)
    # The last layer of each block starts at zero: without this the convolutions would have no say.
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight += 0.1 * torch.randn(module.weight.shape)
    return network.eval()


def distance(poses: Tensor, batch: Batch) -> float:
    return mean_distance(poses - batch[0], batch[1]).item()


def test_decode_of_encode_is_the_forward_pass(trained: PoseTokenizer) -> None:
    batch = make_batch(seed=99)
    codes = trained.encode(*batch)
    output = trained(*batch)
    assert codes.shape == (12, 20, 3)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, output.codes)
    assert (codes[~batch[2]] == 0).all()
    decoded, real = trained.decode(codes, batch[2]), batch[2]
    torch.testing.assert_close(decoded.poses[real], output.poses[real])
    torch.testing.assert_close(decoded.visibility_logits[real], output.visibility_logits[real])


@pytest.mark.parametrize("garbage", [0.0, 5.0, float("nan")])
def test_padding_and_unseen_joints_enter_nothing(trained: PoseTokenizer, garbage: float) -> None:
    """The same clip has the same codes and the same reconstruction, however it is padded and whatever stands there."""
    poses, visibility, key_mask = make_batch(seed=7)
    codes = trained.encode(poses, visibility, key_mask)
    decoded = trained.decode(codes, key_mask)
    filled = torch.where(visibility[..., None], poses, garbage)
    # Padding that claims to be seen is still padding.
    claimed = visibility | ~key_mask[..., None]
    assert torch.equal(trained.encode(filled, claimed, key_mask), codes)
    for i, length in enumerate(key_mask.sum(1).tolist()):
        alone = slice(i, i + 1), slice(0, length)
        cut = trained.encode(filled[alone], visibility[alone], key_mask[alone])
        assert torch.equal(cut, codes[alone])
        torch.testing.assert_close(trained.decode(cut, key_mask[alone]).poses, decoded.poses[alone])


@pytest.mark.parametrize("architecture", ["linear", "causal"])
def test_padding_enters_nothing_in_other_architectures(architecture: str) -> None:
    network = PoseTokenizer(dataclasses.replace(TINY, architecture=architecture))
    losses = train(network, 40)
    assert sum(losses[-5:]) < sum(losses[:5])
    network.eval()
    poses, visibility, key_mask = make_batch(seed=7)
    codes = network.encode(poses, visibility, key_mask)
    for i, length in enumerate(key_mask.sum(1).tolist()):
        alone = slice(i, i + 1), slice(0, length)
        assert torch.equal(network.encode(poses[alone], visibility[alone]), codes[alone])


def test_the_linear_reading_is_linear() -> None:
    network = PoseTokenizer(dataclasses.replace(TINY, architecture="linear"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    mask = torch.ones(1, 6, 1)
    a, b = torch.randn(2, 1, 6, 54).unbind(0)
    encoder = network.encoder
    zero = encoder(torch.zeros_like(a), mask)
    both = encoder(a, mask) + encoder(b, mask) - 2 * zero
    torch.testing.assert_close(encoder(a + b, mask) - zero, both, rtol=1e-4, atol=1e-4)


def test_the_causal_reference_looks_back_seven_keys() -> None:
    torch.manual_seed(0)
    network = PoseTokenizer(dataclasses.replace(TINY, architecture="causal"))
    x = torch.randn(1, 20, 54, requires_grad=True)
    network.encoder(x, torch.ones(1, 20, 1))[0, 12].sum().backward()
    assert x.grad is not None
    assert x.grad[0].abs().sum(-1).nonzero()[:, 0].tolist() == list(range(5, 13))


def test_padding_enters_no_loss(trained: PoseTokenizer) -> None:
    batch = make_batch(seed=3)
    output = trained(*batch)
    expected = tokenizer_losses(output, *batch)
    pad = ~batch[2]
    output.poses = output.poses.masked_fill(pad[..., None, None], 1e3)
    output.visibility_logits = output.visibility_logits.masked_fill(pad[..., None], 50.0)
    found = tokenizer_losses(
        output, batch[0].masked_fill(pad[..., None, None], -1e3), batch[1] | pad[..., None], batch[2]
    )
    assert vars(found) == vars(expected)


def test_the_velocity_loss_differences_time() -> None:
    network = PoseTokenizer(TINY).eval()
    poses, visibility, key_mask = make_batch(seed=1)
    output = network(poses, visibility, key_mask)
    still = torch.randn(12, 1, NUM_JOINTS, 2)
    # A reconstruction that is off by the same vector at all times has the right velocity.
    output.poses = poses + still
    losses = tokenizer_losses(output, poses, visibility, key_mask)
    assert losses.velocity == pytest.approx(0, abs=1e-4)
    assert losses.position > 0.5


def test_codes_of_a_person_who_is_never_seen(trained: PoseTokenizer) -> None:
    poses, visibility, key_mask = make_batch()
    visibility[:, 1:3] = False
    codes = trained.encode(poses, visibility, key_mask)
    assert ((codes >= 0) & (codes < 16)).all()
    nobody = trained.encode(poses, torch.zeros_like(visibility), key_mask)
    assert torch.equal(nobody[0, :4], nobody[1, :4])  # and they do not depend on what the joints hold
    assert trained.decode(nobody, key_mask).poses.isfinite().all()


@pytest.mark.parametrize("keys", [1, 7, 45])
def test_other_numbers_of_keys(trained: PoseTokenizer, keys: int) -> None:
    poses, visibility, _ = make_batch(batch=2, keys=keys)
    key_mask = torch.ones(2, keys, dtype=torch.bool)
    codes = trained.encode(poses, visibility, key_mask)
    assert codes.shape == (2, keys, 3)
    assert trained.decode(codes, key_mask).poses.shape == (2, keys, NUM_JOINTS, 2)


def test_a_prefix_of_the_depths_decodes(trained: PoseTokenizer) -> None:
    batch = make_batch(seed=5)
    codes = trained.encode(*batch)
    latents = trained._latents(*batch)
    error = [(trained.quantizer.lookup(codes, depth) - latents)[batch[2]].norm() for depth in (1, 2, 3)]
    assert error[0] > error[1] > error[2]
    prefix = trained.decode(codes[..., :2], batch[2]).poses
    torch.testing.assert_close(prefix, trained.decode(codes, batch[2], num_quantizers=2).poses)


@pytest.mark.parametrize("depth", [0, 4])
def test_depths_and_codes_out_of_range_are_refused(trained: PoseTokenizer, depth: int) -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    codes = torch.zeros(1, 2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"num_quantizers is {depth} for codes of depth 3"):
        trained.decode(codes, mask, num_quantizers=depth)
    with pytest.raises(ValueError, match=r"range over 0\.\.16; this tokenizer has codes 0\.\.15"):
        trained.decode(codes.index_fill(1, torch.tensor([1]), 16), mask)


def test_training_lowers_the_error_of_the_reconstruction() -> None:
    torch.manual_seed(0)
    network, batch = PoseTokenizer(TINY), make_batch(seed=1234)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    errors = []
    for step in range(61):
        loss = loss_of(network.train(), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, 60):
            errors.append(distance(network.eval()(*batch).poses, batch))
    assert errors[1] < 0.7 * errors[0]


def test_the_tokenizer_comes_back_from_its_export(tmp_path: Path) -> None:
    module = VQVAEModule(VQVAEConfig(network=TINY), max_steps=10)
    poses, visibility, key_mask = make_batch()
    module.network(poses, visibility, key_mask)  # the codebooks start
    module.eval().export(tmp_path / "export", {})
    tokenizer = PoseTokenizer.from_pretrained(tmp_path / "export")
    codes = tokenizer.encode(poses, visibility, key_mask)
    assert torch.equal(codes, module.network.encode(poses, visibility, key_mask))
    # Without a mask every key is real.
    full = tokenizer.encode(poses[:, :4], visibility[:, :4])
    assert torch.equal(full, tokenizer.encode(poses[:, :4], visibility[:, :4], torch.ones(12, 4, dtype=torch.bool)))
    assert tokenizer.decode(full, num_quantizers=1).poses.shape == (12, 4, NUM_JOINTS, 2)


def test_all_state_is_in_the_state_dict() -> None:
    """After a reload one goes on as if nothing had happened: bitwise the same losses and codebooks."""
    torch.manual_seed(0)
    network = PoseTokenizer(TINY, QuantizerConfig(revive_every=2))
    train(network, 5)
    again = PoseTokenizer(TINY, QuantizerConfig(revive_every=2))
    again.load_state_dict(copy.deepcopy(network.state_dict()))
    torch.manual_seed(1)  # no global random number is used
    assert train(network, 4, start=5) == train(again, 4, start=5)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_evaluation_learns_nothing(trained: PoseTokenizer) -> None:
    before = copy.deepcopy(trained.state_dict())
    trained(*make_batch(seed=8))
    trained.encode(*make_batch(seed=9))
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_the_gradient_passes_straight_through() -> None:
    quantizer = ResidualQuantizer(num_quantizers=2, codebook_size=8, dim=4, dropout=0.0)
    latents = torch.randn(3, 10, 4, requires_grad=True)
    weight = torch.randn(3, 10, 4)
    mask = torch.arange(10) < torch.tensor([[10], [6], [2]])
    (quantizer(latents, mask).latents * weight).sum().backward()
    torch.testing.assert_close(latents.grad, weight * mask[..., None])


def test_dropout_of_depths_trains_every_prefix() -> None:
    quantizer = ResidualQuantizer(num_quantizers=4, codebook_size=8, dim=4, dropout=0.5)
    depths = torch.cat([quantizer._draw_depths(200, step) for step in range(5)])
    assert set(depths.tolist()) == {1, 2, 3, 4}
    assert 0.5 < (depths == 4).float().mean() < 0.75  # half of them, and a quarter of the other half
    full = ResidualQuantizer(num_quantizers=4, codebook_size=8, dim=4, dropout=0.0)
    assert (full._draw_depths(50, 0) == 4).all()


def test_the_start_puts_the_entries_on_the_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(6, 4, generator=generator)
    vectors = centres.repeat(50, 1) + 0.01 * torch.randn(300, 4, generator=generator)
    found = kmeans(vectors, 6, 20, generator)
    error = (vectors - found[nearest(vectors, found)]).norm(dim=-1)
    assert error.median() < 0.1
    # Fewer vectors than entries.
    assert kmeans(vectors[:3], 8, 5, generator).isfinite().all()


def test_codebooks_follow_the_latents_and_dead_entries_come_back() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(num_quantizers=2, codebook_size=16, dim=4, dropout=0.0, decay=0.8, revive_every=5)
    mask = torch.ones(8, 20, dtype=torch.bool)
    quantizer(torch.randn(8, 20, 4), mask)
    with torch.no_grad():  # all entries but one are far from everything
        quantizer.codebooks[0, 1:] = 1e3
        quantizer.ema_sums[0, 1:] = 1e3 * quantizer.ema_counts[0, 1:, None]
    for _ in range(60):
        quantizer(5 + torch.randn(8, 20, 4), mask)
    used = quantizer.eval()(5 + torch.randn(8, 20, 4), mask).codes[..., 0].unique()
    assert len(used) >= 12
    assert quantizer.codebooks[0].mean() == pytest.approx(5, abs=0.5)


# A process of its own that imports little: rank, port, folder.
RANK = """
import sys
import torch
import torch.distributed as dist
from modules.metrics.codebook import CodebookUsage
from modules.metrics.pose import PoseError
from modules.vqvae.quantizer import ResidualQuantizer

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
quantizer = ResidualQuantizer(num_quantizers=2, codebook_size=16, dim=4, revive_every=2, dead_below=0.5)
generator = torch.Generator().manual_seed(rank)
for step in range(8):  # other latents, other lengths and another batch size on each rank
    mask = torch.arange(10) < torch.randint(1, 11, (4 + rank, 1), generator=generator)
    quantizer(step + torch.randn(4 + rank, 10, 4, generator=generator), mask)
torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
whole = torch.load(f"{folder}/metrics.pt", weights_only=True)
share = {name: value[rank::2] for name, value in whole.items()}
error, usage = PoseError(), CodebookUsage(2, 16)
error.update(share["poses"], share["target"], share["visibility"], share["boxes"])
usage.update(share["codes"], share["mask"])
torch.save({**error.compute(), **usage.compute()}, f"{folder}/metrics{rank}.pt")
dist.destroy_process_group()
"""


def test_ranks_keep_the_same_codebooks_and_metrics(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(7, 10, NUM_JOINTS, 2, generator=generator)
    whole = {
        "target": target,
        "poses": target + 0.1 * torch.randn(target.shape, generator=generator),
        "visibility": torch.rand(target.shape[:3], generator=generator) < 0.8,
        "boxes": torch.tensor([0.0, 0, 30, 40]).expand(7, 4) * torch.arange(1, 8)[:, None],
        "codes": torch.randint(0, 16, (7, 10, 2), generator=generator),
        "mask": torch.rand(7, 10, generator=generator) < 0.7,
    }
    torch.save(whole, tmp_path / "metrics.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), port, str(tmp_path)], cwd=root) for rank in (0, 1)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["codebooks"].abs().max() > 0
    error, usage = PoseError(), CodebookUsage(2, 16)
    error.update(whole["poses"], whole["target"], whole["visibility"], whole["boxes"])
    usage.update(whole["codes"], whole["mask"])
    expected = {**error.compute(), **usage.compute()}
    for rank in (0, 1):  # each with its part of the samples
        torch.testing.assert_close(torch.load(tmp_path / f"metrics{rank}.pt", weights_only=True), expected)


def make_clip(frames: int, people: int = 1) -> Clip:
    rng = np.random.default_rng(frames)
    persons = []
    for _ in range(people):
        joints = rng.uniform(5, 60, (frames, NUM_JOINTS, 2)).astype(np.float32)
        persons.append(make_person(joints, rng.random((frames, NUM_JOINTS)) < 0.9, 64, 64))
    return Clip("clip", Scene(64, 64, 30.0, np.arange(frames) / 30, persons), "two people")


@pytest.mark.parametrize(("frames", "keys"), [(1, 1), (10, 1), (11, 2), (200, 20), (300, 20)])
def test_items_have_a_key_every_stride(frames: int, keys: int) -> None:
    clip = make_clip(frames, people=2)
    encode = Encode(VQVAEConfig(network=TINY))
    items = encode(clip, np.random.default_rng(0), False)
    assert [item["poses"].shape for item in items] == [(keys, NUM_JOINTS, 2)] * 2
    person = clip.scene.crop(0, min(frames, 200)).persons[0]
    middle, half = (person.box[:2] + person.box[2:]) / 2, (person.box[2:] - person.box[:2]).max() / 2
    seen = person.visibility[::10]
    expected = (person.joints[::10] - middle) / half
    np.testing.assert_allclose(items[0]["poses"][seen], expected[seen], atol=1e-5)
    assert (items[0]["poses"][~seen] == 0).all()
    assert np.abs(items[0]["poses"]).max() < 1.05
    for seed in range(20):
        for item in encode(clip, np.random.default_rng(seed), True):
            assert 1 <= len(item["poses"]) <= 20
            assert np.isfinite(item["poses"]).all()


def test_a_reshaped_person_fills_the_box_again() -> None:
    person = make_clip(30).scene.persons[0]
    poses = normalise(person.joints, person.box, person.visibility)
    rng = np.random.default_rng(1)
    found = reshape(poses, person.visibility, rng, rotate=20, stretch=0.3)
    seen = person.visibility
    assert np.abs(found[seen]).max() == pytest.approx(1, abs=1e-5)
    assert (found[~seen] == 0).all()
    # An affine map: what stood on a line stays on a line, in the same ratios.
    design = np.concatenate([poses[seen], np.ones((seen.sum(), 1))], 1)
    fitted = design @ np.linalg.lstsq(design, found[seen], rcond=None)[0]
    assert found[seen] == pytest.approx(fitted, abs=1e-4)
    assert np.abs(found - poses).max() > 0.05


@pytest.mark.parametrize(("tempo", "least", "most"), [(0.0, 20, 20), (0.5, 13, 20)])
def test_tempo_changes_the_time_between_keys(tempo: float, least: int, most: int) -> None:
    encode, clip = Encode(VQVAEConfig(tempo=tempo, hide_share=0)), make_clip(200)
    keys = {len(encode(clip, np.random.default_rng(seed), True)[0]["poses"]) for seed in range(40)}
    assert least <= min(keys)
    assert max(keys) == most
    assert (len(keys) > 1) == (tempo > 0)
    assert len(encode(clip, np.random.default_rng(0), False)[0]["poses"]) == 20


def test_hidden_joints_are_only_fewer() -> None:
    visibility = np.random.default_rng(0).random((20, NUM_JOINTS)) < 0.8
    results = [hide(visibility, np.random.default_rng(seed)) for seed in range(50)]
    assert all((result <= visibility).all() for result in results)
    assert any((~result).all(1).any() for result in results)  # also whole poses


def test_collate_pads_to_the_longest() -> None:
    encode = Encode(VQVAEConfig(network=TINY))
    rng = np.random.default_rng(0)
    batch = collate([item for frames in (30, 95, 5) for item in encode(make_clip(frames), rng, False)])
    assert batch["key_mask"].sum(1).tolist() == [3, 10, 1]
    assert batch["poses"].shape == (3, 10, NUM_JOINTS, 2)
    assert batch["boxes"].shape == (3, 4)
    assert not batch["visibility"][~batch["key_mask"]].any()


def test_the_module_trains_exports_and_draws(tmp_path: Path) -> None:
    config = VQVAEConfig(network=TINY)
    module = VQVAEModule(config, max_steps=4)
    rng = np.random.default_rng(0)
    batches = [module.collate(module.encode(make_clip(60 + i, 3), rng, True)) for i in range(4)]
    trainer = L.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None), DataLoader(batches[:2], batch_size=None))
    assert {"val/mpjpe", "val/mpjpe_px", "val/perplexity", "codebook/dead_2"} <= set(trainer.callback_metrics)
    images = module.eval().sample_images(batches[0])
    assert len(images) == 3
    assert all(image.dtype == np.uint8 and image.ndim == 3 and image.any() for image in images.values())

    module.export(tmp_path / "export", {"step": 4})
    network = load_frozen(tmp_path / "export", "vqvae")
    assert isinstance(network, PoseTokenizer)
    inputs = (batches[0][name] for name in ("poses", "visibility", "key_mask"))
    codes = network.encode(*inputs)
    assert codes.shape[-1] == 3
    again = VQVAEModule(dict(module.hparams["config"]), max_steps=4)
    again.load_state_dict(module.state_dict())
    assert again.config == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NetworkConfig(kernel_size=2), "network.kernel_size is 2; it must be odd"),
        (lambda: NetworkConfig(dilations=[]), "at least one number"),
        (lambda: NetworkConfig(num_quantizers=0), "network.num_quantizers is 0"),
        (lambda: QuantizerConfig(decay=1.0), "quantizer.decay is 1.0"),
        (lambda: QuantizerConfig(revive_every=0), "revive_every is 0"),
        (lambda: VQVAEConfig(stride=0), "stride is 0"),
        (lambda: VQVAEConfig(hide_share=2), "hide_share is 2"),
        (lambda: VQVAEConfig(velocity_weight=-1), "velocity_weight is -1"),
    ],
)
def test_mistakes_in_the_configuration(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]
