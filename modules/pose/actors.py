"""What the metadata of a clip says about the people in it.

Numpy and the standard library only: the sample data writes it, the evaluator learns from it, the metrics judge by it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modules.pose.scene import Clip

DIRECTIONS = ("left", "right", "toward", "away", "none")
SIDES = ("left", "right", "both", "none")
_SIDES = re.compile(r"\b(left|right)(?=\b|most\b|wards?\b|handed\b)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Actor:
    """One person of a caption. Empty text: the data do not say."""

    action: str
    direction: str = ""  # travel as the viewer sees it, one of DIRECTIONS
    side: str = ""  # the person's own side, one of SIDES


def clip_actors(clip: Clip) -> list[Actor]:
    """The people of a clip in the order of its scene's persons.

    Data without per-person attributes give every person the clip's label.
    """
    entries = clip.meta.get("actors")
    if entries is None or len(entries) != len(clip.scene.persons):
        return [Actor(clip.label) for _ in clip.scene.persons]
    return [Actor(e["action"], e.get("direction", ""), e.get("side", "")) for e in entries]


def swap_sides(text: str) -> str:
    """The text with left and right exchanged; the case of the letters stays."""

    def other(match: re.Match[str]) -> str:
        new = _OTHER[match[0].lower()]
        return new.upper() if match[0].isupper() else new.capitalize() if match[0][0].isupper() else new

    return _SIDES.sub(other, text)
