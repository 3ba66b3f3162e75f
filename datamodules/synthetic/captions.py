"""Captions: who does what, in which clothes, before which background, for how long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# {a}: adverb, {d}: direction, {h}: hand, {l}: leg. The last phrasing of each action is held out for the test split; its
# words occur in others, so that a vocabulary of the training captions knows them.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "walk": ("walks{a} {d}", "is walking{a} {d}", "takes a walk{a} {d}", "goes{a} {d} on foot",
             "goes for a walk{a} {d}", "keeps walking{a} {d}"),
    "run": ("runs{a} {d}", "is running{a} {d}", "jogs{a} {d}", "goes for a run{a} {d}", "is jogging{a} {d}",
            "keeps running{a} {d}"),
    "jump": ("jumps up and down{a}", "is jumping{a} on the spot", "jumps{a} into the air", "keeps on jumping{a}",
             "jumps{a} again and again", "keeps jumping{a} up and down"),
    "jumping jacks": ("does jumping jacks{a}", "is doing jumping jacks{a}", "performs jumping jacks{a}",
                      "does star jumps{a}", "exercises with jumping jacks{a}", "keeps doing jumping jacks{a}"),
    "wave": ("waves {h}{a}", "is waving {h}{a}", "waves hello with {h}{a}", "says hello and waves {h}{a}",
             "greets by waving {h}{a}", "keeps waving {h}{a}"),
    "clap": ("claps{a}", "is clapping{a}", "keeps clapping both hands{a}", "applauds{a}", "is clapping both hands{a}",
             "keeps clapping{a}"),
    "squat": ("does squats{a}", "is squatting{a}", "squats down and up again{a}", "performs squats{a}",
              "exercises with squats{a}", "keeps doing squats{a}"),
    "sit down": ("sits down{a}", "is sitting down{a}", "takes a seat{a}", "sits down{a} on a seat",
                 "goes from standing to sitting{a}", "goes and sits down{a}"),
    "stand up": ("stands up{a}", "is standing up{a}", "gets up{a} from a seat", "rises{a} from a seat",
                 "goes from sitting to standing{a}", "gets up and stands{a}"),
    "bow": ("bows{a}", "is bowing{a}", "takes a bow{a}", "bends forward in a bow{a}", "bows down{a}",
            "keeps bowing{a}"),
    "punch": ("punches with {h}{a}", "is punching with {h}{a}", "throws punches with {h}{a}", "boxes with {h}{a}",
              "is boxing with {h}{a}", "keeps punching with {h}{a}"),
    "kick": ("kicks with {l}{a}", "is kicking with {l}{a}", "kicks forward with {l}{a}", "performs kicks with {l}{a}",
             "does kicks with {l}{a}", "keeps kicking with {l}{a}"),
    "turn around": ("turns around{a}", "is turning around{a}", "makes a half turn{a}", "turns round{a} on the spot",
                    "turns{a} to the other side", "makes a turn around{a}"),
    "side step": ("steps sideways{a} {d}", "is stepping sideways{a} {d}", "takes side steps{a} {d}", "sidesteps{a} {d}",
                  "moves sideways{a} {d}", "keeps stepping sideways{a} {d}"),
    "push-ups": ("does push-ups{a}", "is doing push-ups{a}", "performs push-ups{a}", "does press-ups{a} on the floor",
                 "exercises with push-ups{a}", "keeps doing push-ups{a}"),
    "dance": ("dances{a}", "is dancing{a}", "performs a dance{a}", "keeps moving{a} in a dance", "does a dance{a}",
              "keeps dancing{a}"),
}  # fmt: skip

_ADVERBS = {"slow": (" slowly", " at a slow pace"), "normal": ("",), "fast": (" quickly", " at a fast pace")}
_DIRECTIONS = {
    "left": ("to the left", "towards the left"),
    "right": ("to the right", "towards the right"),
    "toward": ("towards the camera", "towards the viewer"),
    "away": ("away from the camera", "away from the viewer"),
    "none": ("",),
}
_VIEWS = {
    "front": "seen from the front",
    "back": "seen from behind",
    "left side": "seen from the left side",
    "right side": "seen from the right side",
    "three-quarter": "seen at an angle",
}
_BEFORE = {"green lawn": ("on",)}
_SIZES = {"small": "small in the frame", "medium": "of medium size", "large": "large in the frame"}
_PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_PRONOUNS = {"man": "his", "woman": "her", "person": "their"}
_COUNTS = {2: "Two people", 3: "Three people"}
_FRAMES = (
    "{who} {does}{where} for {time} {before}{view}.",
    "For {time}, {who} {does}{where} {before}{view}.",
    "{Before}, {who} {does}{where} for {time}{view}.",
    "A video of {time}: {who} {does}{where} {before}{view}.",
)


def seconds_text(seconds: float) -> str:
    return f"{seconds:g} seconds"


def choose_phrasing(rng: np.random.Generator, action: str, split: str) -> int:
    """Number of a phrasing; half of the test split has the one that the other splits never have."""
    last = len(PHRASINGS[action]) - 1
    return last if split == "test" and rng.random() < 0.5 else int(rng.integers(last))


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _does(rng: np.random.Generator, actor: dict[str, Any], short: bool = False) -> str:
    pronoun = _PRONOUNS[actor["gender"]]
    side = actor["side"]
    the = _pick(rng, (pronoun, "the"))
    hand = f"{pronoun} hands" if side == "both" else f"{the} {side} hand"
    if side == "both":
        hand = _pick(rng, (f"{pronoun} two hands", "both hands"))
    leg = f"{the} {side} {_pick(rng, ('leg', 'foot'))}"
    text = PHRASINGS[actor["action"]][actor["phrasing"]]
    adverb = _ADVERBS[actor["speed"]][0] if short else _pick(rng, _ADVERBS[actor["speed"]])
    return text.format(a=adverb, d=_pick(rng, _DIRECTIONS[actor["direction"]]), h=hand, l=leg).strip()


def _who(rng: np.random.Generator, actor: dict[str, Any], short: bool) -> str:
    clothes = f"a {actor['shirt']} shirt and {actor['trousers']} trousers".replace("a orange", "an orange")
    return f"a {actor['gender']} {'in' if short else _pick(rng, ('in', 'wearing', 'dressed in'))} {clothes}"


def _needs_view(actor: dict[str, Any]) -> bool:
    """Walkers and runners look where they go: their viewpoint follows from the direction."""
    return actor["action"] not in ("walk", "run")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def make_caption(rng: np.random.Generator, actors: list[dict[str, Any]], background: str, seconds: float) -> str:
    """The caption of a clip; people in the order of `actors`, which is from left to right."""
    before = f"{_pick(rng, _BEFORE.get(background, ('in front of', 'before')))} a {background}"
    time = seconds_text(seconds)
    if len(actors) == 1:
        return _one(rng, actors[0], before, time)
    views = {actor["viewpoint"] for actor in actors}
    common = f" {_VIEWS[actors[0]['viewpoint']]}" if len(views) == 1 and any(map(_needs_view, actors)) else ""
    places = ("on the left", "on the right") if len(actors) == 2 else ("on the left", "in the middle", "on the right")
    parts = []
    for place, actor in zip(places, actors, strict=True):
        own = f" {_VIEWS[actor['viewpoint']]}" if len(views) > 1 and _needs_view(actor) else ""
        parts.append(f"{place} {_who(rng, actor, short=True)} {_does(rng, actor, short=True)}{own}")
    return f"{_COUNTS[len(actors)]} {before} for {time}{common}: {', '.join(parts)}."


def _one(rng: np.random.Generator, actor: dict[str, Any], before: str, time: str) -> str:
    where = []
    if actor["place"] != "none" and rng.random() < 0.7:
        where.append(_PLACES[actor["place"]])
    if actor["size"] != "none" and rng.random() < 0.6:
        where.append(_SIZES[actor["size"]])
    view = f", {_VIEWS[actor['viewpoint']]}" if _needs_view(actor) else ""
    frame = _FRAMES[int(rng.integers(len(_FRAMES)))]
    text = frame.format(
        who=_who(rng, actor, short=False),
        does=_does(rng, actor),
        where="".join(f", {part}," for part in [", ".join(where)] if part),
        time=time,
        before=before,
        Before=_capital(before),
        view=view,
    )
    return _capital(text.replace(",.", ".").replace(",,", ","))
