import numpy as np
import pytest

from modules.errors import UserError
from modules.pose.appearance import BACKGROUNDS, CLOTHES, FigureColours, draw_background
from modules.pose.figures import draw_figures, figure_height, figure_mask
from modules.pose.skeleton import MIRROR, NUM_JOINTS

# nose neck, r arm, l arm, r leg, l leg, eyes, ears: a person of 40 px who stands in a frame of 64 px
STANDING = np.array([
    (32, 16), (32, 20), (28, 20), (26, 27), (25, 33), (36, 20), (38, 27), (39, 33),
    (30, 32), (30, 42), (30, 52), (34, 32), (34, 42), (34, 52), (31, 15), (33, 15), (30, 16), (34, 16),
], np.float32)[None]  # fmt: skip
SEEN = np.ones((1, NUM_JOINTS), bool)
NONE = np.zeros((1, NUM_JOINTS), bool)


RED_AND_BLUE = [FigureColours("red", "blue")]


def draw(joints=STANDING, seen=SEEN, colours=RED_AND_BLUE, **more):
    return draw_figures(joints, seen, colours, 64, 64, **more)


def test_the_mask_is_where_the_picture_differs_from_the_background():
    mask = figure_mask(STANDING, SEEN, 64, 64)
    different = (draw() != draw_background("white wall", 64, 64)).any(-1)
    assert mask.dtype == np.float32
    assert mask.min() == 0
    assert mask.max() == 1
    np.testing.assert_array_equal(mask > 0, different)


def test_body_and_legs_have_the_colours_of_the_clothes():
    picture = draw()
    assert tuple(picture[26, 32]) == CLOTHES["red"]
    blue = picture[38, 30].astype(float)
    np.testing.assert_allclose(blue / blue.max(), np.array(CLOTHES["blue"]) / max(CLOTHES["blue"]), atol=0.02)


def test_unseen_joints_are_not_drawn():
    assert figure_mask(STANDING, NONE, 64, 64).sum() == 0
    legless = SEEN.copy()
    legless[:, [9, 10, 12, 13]] = False
    upper = figure_mask(STANDING, legless, 64, 64)
    assert upper[40:].sum() == 0
    np.testing.assert_array_equal(upper[:30], figure_mask(STANDING, SEEN, 64, 64)[:30])


def test_a_whole_pixel_of_shift_shifts_the_figure():
    shifted = figure_mask(STANDING + np.float32([3, 2]), SEEN, 64, 64)
    np.testing.assert_array_equal(shifted[2:, 3:], figure_mask(STANDING, SEEN, 64, 64)[:-2, :-3])


def test_the_mirrored_person_is_the_mirrored_figure():
    mirrored = (np.float32([64, 0]) + STANDING * np.float32([-1, 1]))[:, list(MIRROR)]
    flipped = figure_mask(STANDING, SEEN, 64, 64)[:, ::-1]
    # sixteenths of a small pixel may round the other way
    assert np.abs(figure_mask(mirrored, SEEN, 64, 64) - flipped).mean() < 0.01


def test_the_figure_grows_with_the_canvas():
    small, large = figure_mask(STANDING, SEEN, 64, 64), figure_mask(STANDING * 4, SEEN, 256, 256)
    assert large.sum() / 16 == pytest.approx(small.sum(), rel=0.08)  # lines have whole widths


def test_height_of_the_figure_is_that_of_its_bones():
    tall = figure_height(STANDING, SEEN)
    assert tall.shape == (1,)
    assert 38 < tall[0] < 46
    assert figure_height(STANDING * 2, SEEN)[0] == pytest.approx(2 * tall[0])
    assert figure_height(STANDING, NONE)[0] == 0


def test_the_nearer_person_covers_the_other():
    joints = np.concatenate([STANDING, STANDING])
    seen = np.ones((2, NUM_JOINTS), bool)
    colours = [FigureColours("red", "red"), FigureColours("blue", "blue")]
    depths = np.stack([np.full(NUM_JOINTS, 5.0), np.full(NUM_JOINTS, 6.0)])
    assert tuple(draw(joints, seen, colours, depths=depths)[26, 32]) == CLOTHES["red"]
    assert tuple(draw(joints, seen, colours, depths=depths[::-1])[26, 32]) == CLOTHES["blue"]


def test_an_arm_behind_the_body_is_hidden():
    joints = STANDING.copy()
    joints[0, 4] = (32, 25)  # the right hand lies over the body
    depths = np.full((1, NUM_JOINTS), 5.0)
    depths[0, [3, 4]] = 5.5
    behind = draw(joints, depths=depths)
    depths[0, [3, 4]] = 4.5
    before = draw(joints, depths=depths)
    assert tuple(behind[25, 32]) == CLOTHES["red"]
    assert tuple(before[25, 32]) != CLOTHES["red"]


def test_a_picture_may_be_the_background():
    paper = np.full((64, 64, 3), 77, np.uint8)
    np.testing.assert_array_equal(draw(seen=NONE, background=paper), paper)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UserError, match=r"background is 'beach', allowed are white wall, gray wall"):
        draw(background="beach")
    with pytest.raises(UserError, match=r"shirt is 'beige', allowed are red, orange"):
        draw(colours=[FigureColours("beige", "blue")])


def test_colours_are_well_apart():
    colours = [np.array(c) for c in [*CLOTHES.values(), *BACKGROUNDS.values()]]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(gaps) > 50
