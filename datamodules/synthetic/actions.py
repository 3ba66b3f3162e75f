"""The 16 actions: how fast they go, from where they are seen, and whether they have a side or travel."""

from __future__ import annotations

from datamodules.synthetic import exercises, gaits, gestures
from datamodules.synthetic.motions import Action

FRONT, BACK, LEFT_SIDE, RIGHT_SIDE, OBLIQUE = "front", "back", "left side", "right side", "three-quarter"
VIEWPOINTS = (FRONT, BACK, LEFT_SIDE, RIGHT_SIDE, OBLIQUE)
_NOT_BEHIND = (FRONT, LEFT_SIDE, RIGHT_SIDE, OBLIQUE)
_FRONTAL = (FRONT, BACK, OBLIQUE)
_LYING = (LEFT_SIDE, RIGHT_SIDE, OBLIQUE)
_HANDS = ("left", "right", "both")
_ONE = ("left", "right")

# Hz of slow, normal and fast, with gaps between them.
_CYCLE = ((0.50, 0.62), (0.76, 0.88), (1.04, 1.18))
_GAIT = ((0.50, 0.60), (0.74, 0.86), (1.02, 1.16))
_RUN = ((0.78, 0.86), (0.96, 1.04), (1.14, 1.20))
_JUMP = ((0.48, 0.56), (0.68, 0.78), (0.96, 1.08))
_KICK = ((0.36, 0.43), (0.55, 0.64), (0.82, 0.94))
_STRENGTH = ((0.26, 0.33), (0.45, 0.54), (0.72, 0.84))
_BOW = ((0.18, 0.22), (0.30, 0.36), (0.50, 0.58))
_ONCE = ((0.20, 0.24), (0.32, 0.38), (0.55, 0.66))  # 2.3, 1.4 and 0.8 seconds

_TABLE = (
    Action("walk", gaits.walk, _GAIT, VIEWPOINTS, travels=True),
    Action("run", gaits.run, _RUN, VIEWPOINTS, travels=True),
    Action("jump", exercises.jump, _JUMP, VIEWPOINTS),
    Action("jumping jacks", exercises.jumping_jacks, _CYCLE, _FRONTAL),
    Action("wave", gestures.wave, _CYCLE, _FRONTAL, sides=_HANDS),
    Action("clap", gestures.clap, _CYCLE, _NOT_BEHIND),
    Action("squat", exercises.squat, _STRENGTH, VIEWPOINTS),
    Action("sit down", gestures.sit_down, _ONCE, _NOT_BEHIND, once=True),
    Action("stand up", gestures.stand_up, _ONCE, _NOT_BEHIND, once=True),
    Action("bow", gestures.bow, _BOW, _NOT_BEHIND),
    Action("punch", gestures.punch, _CYCLE, _NOT_BEHIND, sides=_ONE),
    Action("kick", gestures.kick, _KICK, _NOT_BEHIND, sides=_ONE),
    Action("turn around", gaits.turn_around, _ONCE, VIEWPOINTS, once=True),
    Action("side step", gaits.side_step, _GAIT, (FRONT, BACK), travels=True),
    Action("push-ups", exercises.push_ups, _STRENGTH, _LYING),
    Action("dance", exercises.dance, _CYCLE, _FRONTAL),
)
ACTIONS: dict[str, Action] = {action.name: action for action in _TABLE}
