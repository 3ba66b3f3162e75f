"""The skeleton, scenes, boxes and the letterbox: inverses and invariants."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modules.pose.boxes import BOX_BINS, box_to_tokens, denormalise, extent, normalise, round_box, tokens_to_box
from modules.pose.letterbox import Letterbox
from modules.pose.scene import Scene, make_person
from modules.pose.skeleton import BODY_JOINTS, JOINT_COLORS, JOINT_NAMES, LIMB_COLORS, LIMBS, MIRROR, NUM_JOINTS

CANVASES = [(64, 64), (1280, 720), (513, 77)]


def assert_same(first: Scene, second: Scene, tolerance: float = 0) -> None:
    assert (first.width, first.height, first.fps) == (second.width, second.height, second.fps)
    np.testing.assert_array_equal(first.times, second.times)
    np.testing.assert_array_equal(first.visibility, second.visibility)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_allclose(first.joints, second.joints, rtol=0, atol=tolerance)


def test_skeleton():
    assert len(JOINT_NAMES) == NUM_JOINTS == len(JOINT_COLORS) == len(MIRROR) == 18
    assert len(LIMBS) == len(LIMB_COLORS) == 17
    # A tree over all joints: each is reached once, from the neck.
    assert len({joint for limb in LIMBS for joint in limb}) == 18
    assert [JOINT_NAMES[j] for j in BODY_JOINTS] == list(JOINT_NAMES[1:14])
    for joint, name in enumerate(JOINT_NAMES):
        swapped = {"r": "l", "l": "r"}.get(name[0]) if name[1] == "_" else None
        assert JOINT_NAMES[MIRROR[joint]] == (swapped + name[1:] if swapped else name)


# Boxes


@pytest.mark.parametrize(("width", "height"), CANVASES)
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_tokens_of_a_rounded_box_are_exact(kind, width, height):
    rng = np.random.default_rng(0)
    low = rng.integers(0, BOX_BINS - 1, (500, 2))
    high = rng.integers(low + 1, BOX_BINS)
    tokens = kind(np.concatenate([low, high], 1))
    box = tokens_to_box(tokens, width, height)
    assert bool((box_to_tokens(box, width, height) == tokens).all())
    assert bool((round_box(box, width, height) == box).all())


@pytest.mark.parametrize(("width", "height"), CANVASES)
def test_any_box_becomes_a_box_with_an_area_next_to_it(width, height):
    rng = np.random.default_rng(1)
    corners = rng.uniform(-0.2, 1.2, (500, 2, 2)) * [width, height]
    box = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    box[:10, 2:] = box[:10, :2]  # a single point
    tokens = box_to_tokens(box, width, height)
    assert tokens.min() >= 0
    assert tokens.max() < BOX_BINS
    assert (tokens[:, :2] < tokens[:, 2:]).all()
    inside = np.clip(box, 0, [width, height] * 2)
    bin_ = np.array([width, height] * 2) / (BOX_BINS - 1)
    # Half a bin of rounding, and one more where the box had no area.
    assert (np.abs(tokens_to_box(tokens, width, height) - inside) <= bin_ * 1.51).all()
    wide = ((inside[:, 2:] - inside[:, :2]) > 2 * bin_[:2]).all(1)
    assert (np.abs(tokens_to_box(tokens, width, height) - inside)[wide] <= bin_ * 0.501).all()


def test_numpy_and_torch_agree(make_scene):
    scene = make_scene(width=1280, height=720)
    joints, visibility, boxes = scene.joints, scene.visibility, scene.boxes
    tensors = [torch.from_numpy(array) for array in (joints, visibility, boxes)]
    np.testing.assert_array_equal(extent(joints, visibility), extent(*tensors[:2]).numpy())
    coords = normalise(joints, boxes, visibility)
    np.testing.assert_array_equal(coords, normalise(tensors[0], tensors[2], tensors[1]).numpy())
    back = denormalise(torch.from_numpy(coords), tensors[2], tensors[1]).numpy()
    np.testing.assert_array_equal(denormalise(coords, boxes, visibility), back)
    assert coords.dtype == np.float32


def test_box_coordinates():
    box = np.array([10, 20, 50, 30], np.float32)
    corners = np.array([[10, 20], [50, 30], [30, 25]], np.float32)
    np.testing.assert_allclose(normalise(corners, box), [[-1, -0.25], [1, 0.25], [0, 0]])


def test_normalise_is_undone_and_leaves_unseen_joints_at_zero(make_scene):
    scene = make_scene(width=1280, height=720)
    coords = normalise(scene.joints, scene.boxes, scene.visibility)
    assert (coords[~scene.visibility] == 0).all()
    assert np.abs(coords).max() <= 1 + 2 / BOX_BINS * 1280 / 40
    back = denormalise(coords, scene.boxes, scene.visibility)
    np.testing.assert_allclose(back, scene.joints, atol=1e-4)
    assert (back[~scene.visibility] == 0).all()
    # One person with a box, or a batch of people with a box each: the same.
    np.testing.assert_array_equal(coords[1], normalise(scene.joints[1], scene.boxes[1], scene.visibility[1]))


def test_extent_is_of_the_visible_joints_alone():
    joints = np.array([[[1, 2], [30, 5]], [[90, 90], [4, 7]]], np.float32)
    visibility = np.array([[True, True], [False, True]])
    np.testing.assert_array_equal(extent(joints, visibility), [1, 2, 30, 7])
    with pytest.raises(ValueError, match="without any visible joint"):
        extent(joints, np.zeros_like(visibility))


# Scenes


def test_keys_are_at_every_stride():
    for frames, stride, count in [(200, 10, 20), (191, 10, 20), (190, 10, 19), (1, 10, 1), (600, 30, 20)]:
        person = make_person(np.ones((frames, 18, 2)) * 5, np.ones((frames, 18), bool), 64, 64)
        scene = Scene(64, 64, 30.0, np.arange(frames) / 30, [person])
        keys = scene.keys(stride)
        assert keys.num_frames == count
        np.testing.assert_array_equal(keys.times, np.arange(count) * stride / 30)


def test_keys_have_the_boxes_of_the_dense_scene(make_scene):
    scene = make_scene()
    keys = scene.keys(10)
    np.testing.assert_array_equal(keys.boxes, scene.boxes)
    np.testing.assert_array_equal(keys.joints, scene.joints[:, ::10])
    assert_same(scene.at([3, 3, 7]), scene.at(np.array([3, 3, 7])))


def test_crop(make_scene):
    scene = make_scene()
    crop = scene.crop(7, 27)
    np.testing.assert_array_equal(crop.joints, scene.joints[:, 7:27])
    np.testing.assert_array_equal(crop.times, np.arange(20) / 30)
    for person, box in zip(crop.persons, crop.boxes, strict=True):
        np.testing.assert_array_equal(make_person(person.joints, person.visibility, 64, 64).box, box)
    assert_same(scene.crop(0, scene.num_frames), scene)
    scene.persons[0].visibility[7:27] = False
    assert len(scene.crop(7, 27).persons) == 1
    with pytest.raises(ValueError, match=r"crop 40\.\.50 is not within the 45 frames"):
        scene.crop(40, 50)


def test_mirrored_twice_is_the_same(make_scene):
    scene = make_scene(width=1280, height=720)
    once = scene.mirrored()
    assert_same(once.mirrored(), scene, tolerance=1e-3)
    right, left = JOINT_NAMES.index("r_wrist"), JOINT_NAMES.index("l_wrist")
    seen = scene.visibility[:, :, right]
    np.testing.assert_array_equal(once.visibility[:, :, left], seen)
    np.testing.assert_allclose(once.joints[:, :, left, 0][seen], 1280 - scene.joints[:, :, right, 0][seen])
    assert (once.joints[~once.visibility] == 0).all()
    assert once.prompt == scene.prompt


def test_mirroring_commutes_with_normalising(make_scene):
    scene = make_scene(width=1280, height=720)
    once = scene.mirrored()
    expected = normalise(scene.joints, scene.boxes, scene.visibility)[:, :, list(MIRROR)] * [-1, 1]
    np.testing.assert_allclose(normalise(once.joints, once.boxes, once.visibility), expected, atol=1e-4)


def test_ordered_is_by_the_left_edge(make_scene):
    scene = make_scene(persons=4)
    left = [person.box[0] for person in scene.ordered().persons]
    assert left == sorted(left)
    assert len(scene.persons) == len(left)


def test_a_scene_without_people(make_scene):
    scene = make_scene(persons=0)
    assert scene.joints.shape == (0, 45, 18, 2)
    assert scene.visibility.shape == (0, 45, 18)
    assert scene.boxes.shape == (0, 4)
    assert scene.keys(10).mirrored().crop(0, 3).num_frames == 3


def test_make_person_clears_unseen_joints():
    visibility = np.zeros((2, 18), bool)
    visibility[0, 0] = True
    person = make_person(np.full((2, 18, 2), 12.0), visibility, 64, 64)
    assert (person.joints[0, 0] == 12).all()
    assert person.joints.sum() == 24
    assert person.joints.dtype == person.box.dtype == np.float32


# Letterbox

SIZES = [
    ((64, 64), (64, 64)),
    ((1280, 720), (64, 64)),
    ((64, 64), (512, 320)),
    ((77, 513), (512, 320)),
    ((3, 1000), (8, 8)),
]


@pytest.mark.parametrize(("src", "dst"), SIZES)
def test_letterbox_is_undone_and_stays_inside(src, dst):
    fit = Letterbox(src, dst)
    points = np.random.default_rng(0).uniform(0, 1, (50, 2)) * src
    moved = fit.points(points)
    np.testing.assert_allclose(fit.points_back(moved), points, atol=1e-9)
    assert (moved >= -1e-9).all()
    assert (moved <= np.array(dst) + 1e-9).all()


@pytest.mark.parametrize(("src", "dst"), SIZES[:4])
def test_letterbox_moves_frames_and_points_alike(src, dst):
    fit = Letterbox(src, dst)
    # A bright patch: its centre of mass in the picture is where the point goes.
    frame = np.zeros((1, src[1], src[0], 3), np.uint8)
    x, y, w, h = src[0] // 4, src[1] // 3, max(src[0] // 4, 2), max(src[1] // 4, 2)
    frame[0, y : y + h, x : x + w] = 255
    out = fit.frames(frame)[0, ..., 0].astype(float)
    assert out.shape == (dst[1], dst[0])
    rows, columns = np.mgrid[: dst[1], : dst[0]] + 0.5
    centre = [(out * columns).sum() / out.sum(), (out * rows).sum() / out.sum()]
    np.testing.assert_allclose(centre, fit.points(np.array([x + w / 2, y + h / 2])), atol=0.3)


def test_letterbox_of_a_scene(make_scene):
    scene = make_scene(width=128, height=64)
    moved = Letterbox((128, 64), (64, 64)).scene(scene)
    assert (moved.width, moved.height) == (64, 64)
    np.testing.assert_allclose(
        moved.joints[moved.visibility], scene.joints[scene.visibility] / 2 + [0, 16], atol=1e-5
    )
    assert (moved.joints[~moved.visibility] == 0).all()
    np.testing.assert_array_equal(round_box(moved.boxes, 64, 64), moved.boxes)
    np.testing.assert_allclose(moved.boxes, scene.boxes / 2 + [0, 16, 0, 16], atol=0.2)


def test_letterbox_refuses_another_canvas():
    with pytest.raises(ValueError, match="frames are 32x64, the canvas is 64x64"):
        Letterbox((64, 64), (8, 8)).frames(np.zeros((1, 64, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="must be positive"):
        Letterbox((0, 64), (8, 8))
