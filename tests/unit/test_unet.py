"""The video UNet, the noise schedule and the sampler."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from modules.base.network import BaseNetwork, network_config
from modules.controlnet.config import ScheduleConfig, UNetConfig
from modules.controlnet.sampler import Guidance, initial_noise, sample_latents, window_weights, windows
from modules.controlnet.scheduler import NoiseSchedule
from modules.controlnet.unet import ControlResiduals, PlainAttention, TimeConv, VideoUNet
from modules.errors import UserError

TINY = {
    "width": 16, "height": 16, "num_frames": 4,
    "vae": {"block_out_channels": [8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4, "mid_attention": False},
    "unet": {
        "block_out_channels": [8, 16], "cross_attention": [False, True], "layers_per_block": 1, "norm_num_groups": 4,
        "attention_head_dim": 4,
    },
    "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 12},
    "schedule": {"prediction": "v", "zero_terminal_snr": True, "rescale": False},
}  # fmt: skip


def tiny_unet(**changes: object) -> VideoUNet:
    torch.manual_seed(0)
    config = UNetConfig(**{**TINY["unet"], **changes})  # pyright: ignore
    return VideoUNet(**config.arguments(latent_channels=4, text_width=16)).eval()


def tiny_base() -> BaseNetwork:
    torch.manual_seed(0)
    base = BaseNetwork(network_config(TINY)).eval()  # pyright: ignore
    base.text.fit_vocabulary(["a person walks to the left", "two people wave"])
    return base


@torch.no_grad()
def wake(unet: nn.Module) -> None:
    """Give the layers that start at zero (temporal convolutions) values, so that a test sees them."""
    for parameter in unet.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)


def test_videocrafter2_has_all_keys_and_parameters() -> None:
    with torch.device("meta"):
        unet = VideoUNet(**UNetConfig().arguments(latent_channels=4, text_width=1024))
    assert len(unet.state_dict()) == 1484
    assert round(sum(parameter.numel() for parameter in unet.parameters()) / 1e6, 1) == 1413.3
    assert unet.state_dict()["fps_embedding.linear_1.weight"].shape == (1280, 320)


def test_frame_rate_and_text_and_time_matter() -> None:
    unet = tiny_unet()
    x, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 5, 16)
    with torch.no_grad():
        reference = unet(x, 500, text, fps=8.0)
        assert reference.shape == x.shape
        torch.testing.assert_close(unet(x, torch.tensor([500]), text, fps=torch.tensor([8.0])), reference)
        for other in (unet(x, 500, text, fps=15.0), unet(x, 400, text, fps=8.0), unet(x, 500, -text, fps=8.0)):
            assert (other - reference).abs().max() > 1e-4
        default = unet(x, 500, text)
        torch.testing.assert_close(default, unet(x, 500, text, fps=unet.default_fps))


def test_frames_see_each_other_and_videos_do_not() -> None:
    unet = tiny_unet()
    wake(unet)
    x, text = torch.randn(2, 4, 5, 8, 8), torch.randn(2, 5, 16)
    changed = x.clone()
    changed[0, :, 0] += 1
    with torch.no_grad():
        difference = (unet(changed, 500, text) - unet(x, 500, text)).abs().amax((1, 3, 4))  # (B, F)
    assert (difference[0] > 0).all()
    assert difference[1].max() < 1e-6


@pytest.mark.parametrize("size", [(6, 10), (7, 5)])
def test_any_size(size: tuple[int, int]) -> None:
    x = torch.randn(1, 4, 2, *size)
    with torch.no_grad():
        assert tiny_unet()(x, 1, torch.randn(1, 3, 16)).shape == x.shape


def test_control_is_added_and_counted() -> None:
    unet = tiny_unet()
    x, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 3, 16)
    shapes = [(2, 8, 8, 8), (2, 8, 8, 8), (2, 8, 4, 4), (2, 16, 4, 4)]
    control = ControlResiduals(down=[torch.zeros(shape) for shape in shapes], mid=torch.zeros(2, 16, 4, 4))
    with torch.no_grad():
        assert torch.equal(unet(x, 9, text, control=control), unet(x, 9, text))
        control.down[0] += 1
        assert not torch.equal(unet(x, 9, text, control=control), unet(x, 9, text))
    with pytest.raises(ValueError, match="3 residuals, this UNet has 4"):
        unet(x, 9, text, control=ControlResiduals(control.down[:3], control.mid))


def test_plain_attention_and_time_convolution_compute_the_same() -> None:
    unet = tiny_unet()
    wake(unet)
    x, text = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 5, 16)
    with torch.no_grad():
        fused = unet(x, 500, text)
        unet.set_attn_processor(PlainAttention())  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(unet(x, 500, text), fused, atol=1e-5, rtol=1e-5)
        conv = next(module for module in unet.modules() if isinstance(module, TimeConv))
        features = torch.randn(2, conv.in_channels, 3, 4, 4)
        torch.testing.assert_close(conv(features), nn.Conv3d.forward(conv, features), atol=1e-5, rtol=1e-5)


def test_checkpointed_gradients_are_the_same() -> None:
    unet = tiny_unet(temporal_dropout=0.0).train()
    wake(unet)
    x, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 3, 16)
    found = []
    for unet.checkpoint_blocks in (False, True):
        unet.zero_grad()
        unet(x, 500, text).square().mean().backward()
        found.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_config_errors_say_what_is_allowed() -> None:
    with pytest.raises(UserError, match="one entry a level"):
        UNetConfig(block_out_channels=[32, 64], cross_attention=[True])
    with pytest.raises(UserError, match="multiple of unet.norm_num_groups = 32"):
        UNetConfig(block_out_channels=[40], cross_attention=[True], attention_head_dim=8)
    with pytest.raises(UserError, match="needs schedule.prediction=v"):
        ScheduleConfig(zero_terminal_snr=True)


SCHEDULES = [
    ScheduleConfig(),
    ScheduleConfig(rescale=False),
    ScheduleConfig(prediction="v", rescale=True),
    ScheduleConfig(prediction="v", zero_terminal_snr=True, rescale=False),
]


def test_videocrafter2_schedule() -> None:
    schedule = NoiseSchedule(ScheduleConfig())
    assert math.isclose(float(schedule.sigma[0]) ** 2, 0.00085, rel_tol=1e-3)
    assert schedule.scale[0] == 1
    assert torch.allclose(schedule.scale[399:], torch.tensor(0.7))
    assert schedule.timesteps(4) == [751, 501, 251, 1]
    assert len(schedule.timesteps(16)) == 16
    assert not schedule.state_dict()


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    schedule = NoiseSchedule(SCHEDULES[3])
    clean, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    last = torch.tensor([999, 999])
    assert torch.equal(schedule.add_noise(clean, noise, last), noise)
    assert schedule.timesteps(10)[0] == 999
    # At the last step the network predicts the clean latents themselves, with a minus sign.
    torch.testing.assert_close(schedule.target(clean, noise, last), -clean)


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda c: f"{c.prediction}-{c.zero_terminal_snr}-{c.rescale}")
def test_a_perfect_network_gives_the_clean_latents(config: ScheduleConfig) -> None:
    """Splitting undoes the noising, and DDIM with the true prediction walks along the same noise to the end."""
    schedule = NoiseSchedule(config)
    clean, noise = torch.randn(1, 4, 2, 3, 3).double(), torch.randn(1, 4, 2, 3, 3).double()
    for t in (0, 1, 400, 900):
        at = torch.tensor([t])
        noisy = schedule.add_noise(clean, noise, at)
        found, eps = schedule.split(schedule.target(clean, noise, at), noisy, at)
        torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(eps, noise, atol=1e-4, rtol=1e-4)
    steps = schedule.timesteps(7)
    x = schedule.add_noise(clean, noise, torch.tensor([steps[0]]))
    for t, after in zip(steps, [*steps[1:], None], strict=True):
        x = schedule.step(schedule.target(clean, noise, torch.tensor([t])), x, t, after)
    expected = clean if config.zero_terminal_snr else schedule.add_noise(clean, noise, torch.tensor([0]))
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)


def test_eta_needs_noise_and_keeps_the_spread() -> None:
    schedule = NoiseSchedule(ScheduleConfig(rescale=False))
    noisy, eps = torch.randn(1, 1, 1, 64, 64), torch.randn(1, 1, 1, 64, 64)
    with pytest.raises(ValueError, match="give the noise"):
        schedule.step(eps, noisy, 900, 800, eta=1.0)
    fresh = schedule.step(eps, noisy, 900, 800, eta=1.0, noise=torch.randn_like(noisy))
    assert not torch.allclose(fresh, schedule.step(eps, noisy, 900, 800))


def test_windows_cover_everything() -> None:
    assert windows(5, 8) == [range(5)]
    assert windows(20, 8) == [range(0, 8), range(4, 12), range(8, 16), range(12, 20)]
    for frames in range(1, 40):
        spans = windows(frames, 8)
        assert set().union(*spans) == set(range(frames))
        assert len({span.start for span in spans}) == len(spans)
    assert window_weights(4).tolist() == [1, 2, 2, 1]
    assert (window_weights(1) > 0).all()


def test_noise_of_a_frame_depends_on_seed_and_number_alone() -> None:
    long, short = initial_noise([3, 4], 4, 9, (2, 2)), initial_noise([4], 4, 5, (2, 2))
    assert torch.equal(long[1:, :, :5], short)
    assert not torch.equal(long[0], long[1])


@pytest.mark.parametrize("frames", [3, 7])
def test_a_video_does_not_depend_on_its_batch(frames: int) -> None:
    base = tiny_base()
    captions, seeds = ["a person walks to the left", "two people wave"], [5, 6]
    options = {"num_frames": frames, "steps": 3, "guidance": Guidance(3.0, 0.5)}
    both = sample_latents(base, captions, seeds, fps=torch.tensor([8.0, 15.0]), **options)
    alone = sample_latents(base, captions[1:], seeds[1:], fps=15.0, **options)
    assert both.shape == (2, 4, frames, 4, 4)
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(alone, sample_latents(base, captions[1:], seeds[1:], fps=15.0, **options))
    other = sample_latents(base, captions[1:], [7], fps=15.0, **options)
    assert not torch.allclose(other, alone)
