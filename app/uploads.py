"""What comes in: bodies of limited size, and files whose kind is known by their name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.requests import Request

from app.desk import Side
from modules.errors import UserError
from modules.pose.importing import read_poses
from modules.pose.io import plan_from_dict
from modules.session import session_from_dict
from modules.text import check_prompt

_JSON_LIMIT = 2**20  # bytes of a request that is no file
_DRAIN = 32  # a body up to this many times too large is read to its end, so that the browser sees the answer


class TooLarge(UserError):
    """A body beyond the limit."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request. No more than `limit` bytes are kept.

    Raises:
        TooLarge: it is longer.
    """
    declared = int(request.headers.get("content-length") or 0)
    message = f"this is larger than {limit / 2**20:g} MB, which is the limit here; send a smaller file"
    if declared > _DRAIN * limit:
        raise TooLarge(message)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > _DRAIN * limit:
            break
        else:
            chunks.clear()
    if size > limit:
        raise TooLarge(message)
    return b"".join(chunks)


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        UserError: it is not one.
    """
    body = await read_body(request, _JSON_LIMIT)
    data = parse_json(body or b"{}", "the request")
    if not isinstance(data, dict):
        raise UserError("the request is not a JSON object")
    return data


def parse_json(body: bytes, name: str) -> Any:
    """JSON of somebody else's making.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({error}); mend it at that place") from None


def open_file(desk: Side, name: str, body: bytes, prompt: str, render: bool) -> None:
    """Open `plan.json`, a session file, OpenPose JSON or `.npy`, told apart by what is in them.

    Args:
        name: as the visitor calls it; for messages and the suffix, never a path here.
        prompt: for poses, which have none of their own.

    Raises:
        UserError: says what is wrong with the file.
    """
    name = PurePosixPath(name.replace("\\", "/")).name[:100] or "the file"
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in (".json", ".npy"):
        raise UserError(f"{name} is neither .json nor .npy; open plan.json, a session, OpenPose JSON or poses.npy")
    if suffix == ".json":
        data = parse_json(body, name)
        if isinstance(data, dict) and "session" in data:
            desk.open(session_from_dict(data, name), render)
            return
        if isinstance(data, dict) and not {"people", "keypoints"} & set(data):
            desk.open_plan(plan_from_dict(data, name), f"opened {name}", render)
            return
    check_prompt(prompt)
    pipeline = desk.pipeline(desk.session.settings.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"poses{suffix}"
        path.write_bytes(body)
        try:
            plan = read_poses(
                path,
                size=(pipeline.config.width, pipeline.config.height),
                fps=pipeline.interpolator.fps,
                stride=pipeline.director.stride,
                prompt=prompt.strip(),
                seed=desk.session.settings.seed,
            )
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from None
    desk.open_plan(plan, f"opened {name}", render)
