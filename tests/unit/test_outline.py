"""The outline: segments between keys, smooth at the keys, local, trainable; ends of a clip."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from modules.interp.losses import outline_losses
from modules.interp.outline import Outline, Segments, cut_segments, hide_outer
from modules.interp.windows import cut_windows
from tests.unit.test_interp import FPS, J, batch_of, keys_of, windows_of

TEXT = 4


def outline_of(seed: int = 0) -> Outline:
    """An outline with random weights in every layer."""
    torch.manual_seed(seed)
    outline = Outline(width=16, layers=2, text_width=TEXT)
    with torch.no_grad():
        for parameter in outline.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return outline


def segments_of(batch: dict[str, Any]) -> Segments:
    return cut_segments(windows_of(batch), FPS)


def course_of(outline: Outline, segments: Segments) -> Tensor:
    text = torch.zeros(len(segments.before), TEXT)
    with torch.no_grad():
        return outline(segments, text, text)


def test_segments_hold_every_frame_between_the_first_and_the_last_key_once() -> None:
    batch = batch_of([61, 93, 8])  # keys up to frames 60 and 90, and a single key
    segments = segments_of(batch)
    assert len(segments.before) == 6 + 9
    ones = segments.scatter(torch.ones_like(segments.share), 3, 93)
    assert ones.sum(1).tolist() == [61, 91, 0]
    assert int(segments.frame_mask.sum()) == 61 + 91
    again = segments.scatter(segments.gather(batch["poses"]), 3, 93)
    torch.testing.assert_close(again[1, :91], batch["poses"][1, :91])


def test_segments_of_irregular_keys_off_the_frame_grid() -> None:
    times = torch.tensor([[0.05, 0.31, 0.315, 1.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    windows = cut_windows(torch.zeros(1, 4, J, 2), mask[..., None].expand(-1, -1, J), mask, times, 40, FPS)
    segments = cut_segments(windows, FPS)
    at = segments.scatter(segments.share, 1, 40)[0]
    inside = segments.scatter(segments.frame_mask.float(), 1, 40)[0]
    assert inside.nonzero()[:, 0].tolist() == list(range(2, 31))  # 0.05 s is frame 1.5
    torch.testing.assert_close(at[5], torch.tensor((5 / FPS - 0.05) / 0.26), atol=1e-4, rtol=0)
    torch.testing.assert_close(at[20], torch.tensor((20 / FPS - 0.315) / 0.685), atol=1e-4, rtol=0)


def test_no_kink_at_the_keys() -> None:
    segments, step = segments_of(batch_of([301], 30)), 2e-4
    share = torch.tensor([0, step, 1 - step, 1]).expand(len(segments.before), -1)
    course = course_of(outline_of(), dataclasses.replace(segments, share=share)).double()
    torch.testing.assert_close(course[:-1, 3], course[1:, 0], atol=1e-5, rtol=0)
    arrives, leaves = (course[:-1, 3] - course[:-1, 2]) / step, (course[1:, 1] - course[1:, 0]) / step
    assert leaves.abs().mean() > 0.1
    torch.testing.assert_close(arrives, leaves, atol=0.03, rtol=0)


def test_one_key_reaches_four_segments() -> None:
    batch, outline = batch_of([200]), outline_of()
    moved = batch | {"keys": batch["keys"].clone()}
    moved["keys"][0, 8] += 0.2 * moved["key_visibility"][0, 8, :, None]
    before, after = (course_of(outline, segments_of(b)) for b in (batch, moved))
    changed = (before != after).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert changed == [6, 7, 8, 9]


def test_hidden_keys_look_like_the_ends_of_a_clip() -> None:
    batch, outline = batch_of([61]), outline_of()
    segments = segments_of(batch)
    hidden = hide_outer(segments, torch.ones(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool))
    keys, visibility, mask, times = (value[:, 2:4] for value in keys_of(batch))
    alone = cut_segments(cut_windows(keys, visibility, mask, times, 61, FPS), FPS)
    found, expected = course_of(outline, hidden)[2], course_of(outline, alone)[0]
    torch.testing.assert_close(found[:10], expected[:10], atol=1e-5, rtol=0)
    assert not torch.equal(course_of(outline, segments)[2], found)


def test_it_starts_as_a_spline_through_the_keys_and_learns_what_the_spline_misses() -> None:
    batch = batch_of([200] * 4, 20)
    segments = segments_of(batch)
    torch.manual_seed(0)
    outline = Outline(width=32, layers=2, text_width=TEXT)
    text = torch.zeros(len(segments.before), TEXT)
    seen = segments.gather(batch["visibility"]) & segments.frame_mask[..., None]
    known = segments.left.key_visibility[:, 1] & segments.right.key_visibility[:, 1]
    counted = seen & known[:, None]
    truth = segments.gather(batch["poses"])
    start = course_of(outline, segments)
    at_key = (start[:, 0] - truth[:, 0]).norm(dim=-1)[known]
    assert at_key.max() < 1e-5
    optimizer = torch.optim.Adam(outline.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = outline_losses(outline(segments, text, text) - truth, counted, segments)["outline"].value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(p.grad is not None for name, p in outline.named_parameters())


def test_losses_count_what_is_said_to_count_and_weigh_gaps_alike() -> None:
    segments = segments_of(batch_of([31]))  # three segments of 10 or 11 frames
    error = torch.zeros(*segments.share.shape, J, 2)
    counted = torch.zeros(error.shape[:-1], dtype=torch.bool)
    error[0, 3, 0], error[1, 2, 5] = torch.tensor([3.0, 4.0]), torch.tensor([30.0, 40.0])
    counted[0, 3, 0] = counted[1, 2, 5] = True
    segments = dataclasses.replace(segments, gap=torch.tensor([1 / 3, 10 / 3, 1.0]))
    losses = outline_losses(error, counted, segments)
    torch.testing.assert_close(losses["outline"].value, torch.tensor(5.0))
    assert losses["outline_velocity"].value == 0  # no two frames in a row count
    spoilt = torch.where(counted[..., None], error, 7.0)
    assert outline_losses(spoilt, counted, segments)["outline"].value == losses["outline"].value
    # An error that stays the same has no velocity; one that swings out and back has about its own size.
    still, swing = torch.ones_like(error), (torch.pi * segments.share).sin()[..., None, None] * torch.ones_like(error)
    inside = segments.frame_mask[..., None].expand_as(counted)
    segments = dataclasses.replace(segments, gap=torch.full((3,), 1 / 3))
    assert outline_losses(still, inside, segments)["outline_velocity"].value < 0.01
    found = outline_losses(swing, inside, segments)
    torch.testing.assert_close(found["outline_velocity"].value, found["outline"].value, rtol=0.1, atol=0)
