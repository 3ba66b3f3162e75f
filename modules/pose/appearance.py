"""Named colours of clothes and backgrounds: what captions name, figures wear and the metrics read back.

The colours are well apart from each other, so that they can be told in a blurred picture. All are RGB, 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modules.errors import UserError

RGB = tuple[int, int, int]

CLOTHES: dict[str, RGB] = {
    "red": (205, 25, 35),
    "orange": (245, 125, 10),
    "yellow": (250, 220, 20),
    "green": (15, 120, 45),
    "blue": (30, 60, 205),
    "purple": (120, 25, 150),
    "black": (24, 24, 28),
}
BACKGROUNDS: dict[str, RGB] = {
    "white wall": (240, 240, 236),
    "gray wall": (142, 146, 150),
    "blue backdrop": (140, 195, 245),
    "green lawn": (160, 215, 115),
    "teal curtain": (50, 155, 155),
    "purple curtain": (205, 170, 235),
}
SKINS: dict[str, RGB] = {"light": (240, 186, 150), "tan": (196, 136, 92), "dark": (112, 70, 46)}
HAIRS: dict[str, RGB] = {"black": (34, 26, 24), "brown": (92, 54, 28), "blond": (222, 178, 84)}
SHOES: RGB = (66, 60, 62)
PARTS = ("shirt", "trousers", "skin", "hair", "shoes")
FLOOR_ROW = 0.80  # share of the height above the floor
FLOOR_SHADE = 0.86  # the floor is the background's colour, darker


@dataclass(frozen=True)
class FigureColours:
    """Colours of one figure, by their names in CLOTHES, SKINS and HAIRS."""

    shirt: str = "red"
    trousers: str = "blue"
    skin: str = "tan"
    hair: str = "brown"

    def rgb(self, part: str) -> RGB:
        """Colour of one of PARTS.

        Raises:
            UserError: the figure's name of that colour is not in the palette.
        """
        if part == "shoes":
            return SHOES
        palette = {"shirt": CLOTHES, "trousers": CLOTHES, "skin": SKINS, "hair": HAIRS}[part]
        return named_colour(getattr(self, part), palette, part)


def named_colour(name: str, palette: dict[str, RGB], what: str = "colour") -> RGB:
    """The colour of that name; a UserError lists the names of the palette otherwise."""
    if name not in palette:
        raise UserError(f"{what} is {name!r}, allowed are {', '.join(palette)}; choose one of them")
    return palette[name]


def draw_background(name: str, height: int, width: int) -> np.ndarray:
    """A plain background with a darker band as the floor: (height, width, 3) uint8."""
    colour = np.array(named_colour(name, BACKGROUNDS, "background"), np.float32)
    picture = np.empty((height, width, 3), np.uint8)
    floor = round(FLOOR_ROW * height)
    picture[:floor] = colour.astype(np.uint8)
    picture[floor:] = (FLOOR_SHADE * colour).astype(np.uint8)
    return picture
