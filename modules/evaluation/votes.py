"""A page of blind pairs for people to vote on: which video shows the caption better? Votes are saved as a JSON file."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modules.evaluation.page import STYLE, inline_video
from modules.files import atomic_write

_SCRIPT = """
const votes = {};
function show() {
  const done = Object.keys(votes).length, all = document.querySelectorAll('fieldset').length;
  document.getElementById('done').textContent = done + ' of ' + all + ' voted';
  document.getElementById('save').disabled = done === 0;
}
document.addEventListener('change', event => { votes[event.target.name] = event.target.value; show(); });
document.getElementById('save').addEventListener('click', () => {
  const voter = document.getElementById('voter').value;
  const text = JSON.stringify({version: 1, page: document.body.dataset.page, voter, votes}, null, 1);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'votes.json';
  link.click();
});
show();
"""
_MORE = """
.pair { display: flex; flex-wrap: wrap; gap: 16px; } .pair video { height: 256px; max-width: 100%; }
fieldset { border: 1px solid var(--line); border-radius: 6px; margin: 18px 0; padding: 12px 16px; }
legend { font-weight: 600; } label { margin-right: 18px; display: inline-block; padding: 8px 0; }
button, input { font: inherit; padding: 8px 14px; } .bar { position: sticky; bottom: 0; background: var(--back);
  border-top: 1px solid var(--line); padding: 12px 0; display: flex; flex-wrap: wrap; gap: 14px; align-items: center; }
"""


def write_votes(
    directory: str | Path, name: str, pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], fps: float, seed: int
) -> tuple[Path, Path]:
    """Write `<name>-votes.html` and `<name>-votes-key.json`, which says what A and B were: keep it from the voters.

    Args:
        pairs: (caption, first video, second video), (F, H, W, 3) uint8.
        fps: of the videos.
        seed: which of the two is A is drawn by chance for each pair.
    """
    rng, key, fields = np.random.default_rng(seed), {}, []
    for number, (caption, *videos) in enumerate(pairs):
        flipped = bool(rng.random() < 0.5)
        key[f"pair{number}"] = {"A": "second" if flipped else "first", "B": "first" if flipped else "second"}
        shown = videos[::-1] if flipped else videos
        figures = "".join(
            f"<figure>{inline_video(video, fps)}<figcaption>{letter}</figcaption></figure>"
            for letter, video in zip("AB", shown, strict=True)
        )
        choices = "".join(
            f'<label><input type="radio" name="pair{number}" value="{value}"> {text}</label>'
            for value, text in (("A", "A"), ("B", "B"), ("tie", "cannot tell"))
        )
        legend = f"<legend>{number + 1}. {html.escape(caption)}</legend>"
        fields.append(f'<fieldset>{legend}<div class="pair">{figures}</div>{choices}</fieldset>')
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Which one shows the caption better?</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{STYLE}{_MORE}</style></head><body data-page="{html.escape(name)}">'
        "<h1>Which one shows the caption better?</h1><p>Who does what, with which hand or in which direction. The "
        "order is random. Votes stay on this machine until you save them and send the file.</p>"
        f'{"".join(fields)}<div class="bar"><label>Your name (optional) <input id="voter"></label>'
        f'<button id="save">Save votes.json</button><span id="done"></span></div>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )
    path, answers = Path(directory) / f"{name}-votes.html", Path(directory) / f"{name}-votes-key.json"
    with atomic_write(path) as file:
        file.write(page)
    with atomic_write(answers) as file:
        json.dump({"version": 1, "page": name, "first": "without", "second": "with", "pairs": key}, file, indent=1)
    return path, answers
