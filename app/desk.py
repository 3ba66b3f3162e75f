"""A visitor's desk: two sides, each with a session, what was made of its plans, and the job at work."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.jobs import Job, JobQueue
from modules.controlnet.sampler import Predictions
from modules.editing import DIRECTED, Edit, apply_edits
from modules.errors import UserError
from modules.outputs import write_file
from modules.pipeline import Pipeline, Result
from modules.pose.io import Plan, plan_to_dict
from modules.pose.scene import Scene
from modules.pose.video import read_frames
from modules.session import Session, Settings

_KEEP_MADE = 12  # motions and videos kept for undo and redo; older ones are made again
_LABELS = {
    "move_joint": "joint moved",
    "show_joint": "joint shown or hidden",
    "move_person": "person moved",
    "set_box": "box changed",
    "delete_person": "person deleted",
    "add_person": "person added",
    "continue": "from here on",
    "set_prompt": "prompt changed",
}


@dataclass(eq=False)
class Made:
    """What follows from a plan."""

    dense: Scene
    video: bytes | None = None  # mp4
    frames: np.ndarray | None = None  # (F, H, W, 3) uint8; of the latest video alone
    fps: float = 0.0


class Side:
    """One side of a desk.

    Args:
        queue: of all visitors.
        pipeline: gives the pipeline of a checkpoint by its name.
        check: refuses plans beyond the limits of the server.
        save: keeps the session.
    """

    def __init__(
        self,
        *,
        queue: JobQueue,
        pipeline: Callable[[str], Pipeline],
        check: Callable[[Plan], None],
        save: Callable[[Session], None],
        session: Session | None = None,
    ) -> None:
        self.queue, self.pipeline, self.check, self._save = queue, pipeline, check, save
        self.session = session or Session()
        self.made: OrderedDict[int, Made] = OrderedDict()
        self._kept = Predictions()  # of the last video
        self.job: Job | None = None
        self.preview: Plan | None = None
        self.revision = 1
        self.lock = threading.RLock()

    def changed(self) -> None:
        """There is something new to show."""
        self.revision += 1

    # What a visitor does. Each returns at once; what takes time is a job.

    def generate(self, settings: Settings, render: bool = True) -> None:
        """A new plan from a prompt, its motion and its video."""
        pipeline = self.pipeline(settings.checkpoint)

        def run(job: Job) -> None:
            def show(preview: Plan) -> None:
                self.preview = preview
                job.note("first_key")
                job.report("key poses", preview.scene_keys.num_frames, 0)

            job.report("loading the director", 0, 0)
            keys = None
            if settings.seconds is not None:
                keys = round(settings.seconds * pipeline.director.fps / pipeline.director.stride)
            try:
                (plan,) = pipeline.plan(
                    [settings.prompt], [settings.seed], num_people=settings.people, num_keys=keys, on_key=show
                )
            finally:
                self.preview = None
            with self.lock:
                self.session.settings = settings
                self._push(plan, "from the prompt")
            self._make(job, render)

        self._start("director", run)

    def edit(self, edits: Sequence[Edit], render: bool = True) -> None:
        """Change the plan at hand. Only what the director must write waits for the queue."""
        with self.lock:
            plan = self._plan()
            label = _LABELS[edits[-1]["op"]] if edits else "no change"
            if not any(edit["op"] in DIRECTED for edit in edits):
                changed = apply_edits(plan, edits)
                self.check(changed)
                self._start("motion", lambda job: self._make(job, render), before=lambda: self._push(changed, label))
                return

        def run(job: Job) -> None:
            job.report("director", 0, 0)
            changed = apply_edits(plan, edits, self._own_pipeline())
            self.check(changed)
            with self.lock:
                self._push(changed, label)
            self._make(job, render)

        self._start("director", run)

    def move(self, step: int, render: bool = True) -> None:
        """Undo (-1) or redo (1). What was made of that plan before is shown again."""
        with self.lock:
            self._start("motion", lambda job: self._make(job, render), before=lambda: self.session.move(step))
            self._keep()

    def render(self, guidance: float | None = None) -> None:
        """The video of the plan at hand, anew where the guidance differs."""
        with self.lock:
            version = self.session.current
            if version is None:
                raise UserError("there is no plan yet; write a prompt or open one")
            if guidance != self.session.settings.guidance:
                self.session.settings = dataclasses.replace(self.session.settings, guidance=guidance)
                for made in self.made.values():
                    made.video = made.frames = None
            self._start("video", lambda job: self._make(job, True))

    def open(self, session: Session, render: bool = True) -> None:
        """Another session in the place of this one."""
        for version in session.versions:
            self.check(version.plan)
        self.pipeline(session.settings.checkpoint)  # refuses a name that is not known here

        def replace() -> None:
            self.session = session
            self.made.clear()
            self._keep()

        with self.lock:
            self._start("motion", lambda job: self._make(job, render), before=replace)

    def open_plan(self, plan: Plan, label: str, render: bool = True) -> None:
        """A plan from a file as the next version; the settings follow it."""
        self.check(plan)

        def push() -> None:
            prompt = plan.scene_keys.prompt
            checkpoint, guidance = self.session.settings.checkpoint, self.session.settings.guidance
            self.session.settings = Settings(prompt, max(plan.seed, 0), checkpoint=checkpoint, guidance=guidance)
            self._push(plan, label)

        with self.lock:
            self._start("motion", lambda job: self._make(job, render), before=push)

    def cancel(self) -> None:
        """Stop the job at work; what it finished stays."""
        if self.job is not None:
            self.job.cancel()

    # What is shown.

    def state(self) -> dict[str, Any]:
        """All that the page draws, as JSON."""
        with self.lock:
            session, version, job = self.session, self.session.current, self.job
            plan = self.preview or (version.plan if version else None)
            made = self.made.get(version.number) if version else None
            active = job is not None and job.state in ("waiting", "running")
            return {
                "revision": self.revision,
                "settings": dataclasses.asdict(session.settings),
                "plan": None if plan is None else shown(plan),
                "preview": self.preview is not None,
                "version": None if version is None else version.number,
                "versions": [{"number": v.number, "label": v.label} for v in session.versions],
                "cursor": session.cursor,
                "can_undo": session.can_undo,
                "can_redo": session.can_redo,
                "dense": made is not None,
                "video": made is not None and made.video is not None,
                "job": None if job is None else {
                    "state": job.state, "stage": job.stage, "done": job.done, "total": job.total, "error": job.error,
                    "times": job.times, "active": active, "position": self.queue.position(job) if active else 0,
                },
            }  # fmt: skip

    def dense(self, version: int) -> Scene:
        """The motion of a version.

        Raises:
            UserError: it was not made yet.
        """
        with self.lock:
            if version not in self.made:
                raise UserError("this motion is not made yet, or was dropped; undo or redo makes it again")
            return self.made[version].dense

    def file(self, name: str) -> bytes:
        """One of the FILES of modules/outputs.py, of the plan at hand."""
        with self.lock:
            version, plan = self.session.current, self._plan()
            assert version is not None
            made = self.made.get(version.number)
        if name == "video.mp4" and made is not None and made.video is not None:
            return made.video
        needs_frames = name not in ("plan.json", "poses.json", "poses.npy", "poses.mp4")
        if (made is None and name != "plan.json") or (needs_frames and (made is None or made.video is None)):
            raise UserError(f"{name} is not made yet; wait for it, or press Render")
        frames = made.frames if made is not None else None
        if needs_frames and made is not None and made.video is not None and frames is None:
            frames = read_frames(made.video)
        # A plan alone has neither motion nor frames; write_file does not look at them then.
        result = Result(plan, made and made.dense, frames, made.fps if made else 0.0)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write_file(path, result)
            return path.read_bytes()

    # Inside.

    def _plan(self) -> Plan:
        version = self.session.current
        if version is None:
            raise UserError("there is no plan yet; write a prompt or open one")
        return version.plan

    def _own_pipeline(self) -> Pipeline:
        return self.pipeline(self.session.settings.checkpoint)

    def _push(self, plan: Plan, label: str) -> None:
        self.session.push(plan, label)
        self._keep()

    def _keep(self) -> None:
        self._save(self.session)
        self.changed()

    def _start(self, title: str, run: Callable[[Job], None], before: Callable[[], None] | None = None) -> None:
        """Queue a job in the place of the one at work; `before` changes the session, once there is room for the job.

        So a side never has more than one job.
        """
        with self.lock:
            job = Job(title, run, self.changed)
            self.queue.submit(job, replaces=self.job, before=before)
            self.job = job
            self.changed()

    def _make(self, job: Job, render: bool) -> None:
        """Motion and video of the plan at hand, as far as they are missing."""
        with self.lock:
            version = self.session.current
            made = self.made.get(version.number) if version else None
        assert version is not None
        pipeline, plan = self._own_pipeline(), version.plan
        if made is None:
            count = len(plan.scene_keys.persons)
            job.report("motion", 0, count)
            made = Made(pipeline.dense(plan, on_step=lambda done, total: job.report("motion", done, total)))
            with self.lock:
                self.made[version.number] = made
                while len(self.made) > _KEEP_MADE:
                    self.made.popitem(last=False)
        job.note("dense")
        self.changed()
        if made.video is not None or not render:
            return
        job.report("video", 0, pipeline.config.render.steps)
        settings, guidance = pipeline.config.render, self.session.settings.guidance
        if guidance is not None:
            settings = dataclasses.replace(settings, guidance_scale=guidance)
        (frames,) = pipeline.render(
            [made.dense],
            [plan.seed],
            settings=settings,
            on_step=lambda done, total: job.report("video", done, total),
            kept=self._kept,
        )
        for other in list(self.made.values()):
            other.frames = None
        made.frames, made.fps = frames, pipeline.video_fps(made.dense)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            write_file(path, Result(plan, made.dense, frames, made.fps))
            made.video = path.read_bytes()
        job.note("video")


def shown(plan: Plan) -> dict[str, Any]:
    """`plan.json` without the codes, which are of no use to the page."""
    return plan_to_dict(dataclasses.replace(plan, codes=None))
