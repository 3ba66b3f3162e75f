"""What the page must know: the skeleton, the limits, the checkpoints, the examples and the reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.visitors import Visitors
from modules.errors import UserError
from modules.pose.checks import load_json
from modules.pose.draw import BOX_COLORS
from modules.pose.io import Plan, read_plan
from modules.pose.skeleton import JOINT_COLORS, JOINT_NAMES, LIMB_COLORS, LIMBS
from modules.reports import Report, read_report
from modules.text import MAX_PROMPT_CHARACTERS

GALLERY = Path(__file__).parent / "gallery"
_REPORTS = ("chain", "controlnet", "llm", "interp", "vqvae", "evaluator")


def page_facts(visitors: Visitors) -> dict[str, Any]:
    """Constants of the page, from where the rest of the program has them."""
    limits, config = visitors.limits, visitors.config.pipeline
    director = visitors.checkpoints("").director
    longest = director.grammar.vocabulary.codes.max_keys * director.stride / director.fps
    return {
        "joints": JOINT_NAMES,
        "joint_colors": JOINT_COLORS,
        "limbs": LIMBS,
        "limb_colors": LIMB_COLORS,
        "box_colors": BOX_COLORS,
        "width": config.width,
        "height": config.height,
        "guidance": config.render.guidance_scale,
        "max_people": director.grammar.max_people,
        "max_seconds": min(limits.max_seconds, longest),
        "max_prompt": MAX_PROMPT_CHARACTERS,
        "max_upload_mb": limits.max_upload_mb,
        "checkpoints": visitors.checkpoints.names,
    }


def gallery() -> list[dict[str, str]]:
    """The examples: name, prompt and picture of each."""
    found = []
    for path in sorted(GALLERY.glob("*.json")):
        prompt = load_json(path)["prompt"]
        found.append({"name": path.stem, "prompt": prompt, "picture": str(path.with_suffix(".webp"))})
    return found


def gallery_plan(name: object) -> Plan:
    """The plan of an example.

    Raises:
        UserError: there is none of that name.
    """
    known = [example["name"] for example in gallery()]
    if name not in known:
        raise UserError(f"there is no such example; there are {', '.join(known)}")
    return read_plan(GALLERY / f"{name}.json")


def reports(visitors: Visitors) -> list[dict[str, Any]]:
    """The last evaluation of each stage of the first checkpoint, its figures as text."""
    config = visitors.config
    found = []
    for stage in _REPORTS:
        folder = Path(config.run_dir) / stage / config.name / "eval"
        paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in reversed(paths):
            try:
                found.append(_shown(read_report(path)))
            except UserError:
                continue  # another program's file
            break
    return found


def _shown(report: Report) -> dict[str, Any]:
    tables = [
        {
            "title": table.title,
            "columns": [column.heading for column in table.columns],
            "rows": [[row.name, *table.cells(row)] for row in table.rows],
            "notes": table.notes,
        }
        for table in report.tables
    ]
    return {"stage": report.stage, "split": report.split, "clips": report.clips, "tables": tables}
