"""Who sits at which desk: a secret cookie a visitor, desks kept in memory, their sessions on disk."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from pathlib import Path

from app.desk import Side
from app.jobs import JobQueue
from configs.app_schema import AppConfig
from modules.errors import UserError
from modules.pipeline import DENSE_STAGES, PLAN_STAGES, RENDER_STAGES, Exports, Pipeline, PipelineConfig
from modules.pose.io import Plan
from modules.session import Session, read_session, write_session

log = logging.getLogger(__name__)

TOKEN = re.compile(r"[A-Za-z0-9_-]{32}")
SIDES = ("a", "b")
_CLEAN_EVERY = 3600.0  # seconds between two looks for sessions that nobody uses any more


class Checkpoints:
    """Pipelines by name; the first is the configuration's own."""

    def __init__(self, config: AppConfig) -> None:
        self.names = list(dict.fromkeys([config.name, *config.desk.compare]))
        self._configs: dict[str, PipelineConfig] = {config.name: config.pipeline}
        for name in self.names[1:]:
            exports = Exports(**{stage: f"{config.run_dir}/{stage}/{name}/export" for stage in vars(Exports())})
            self._configs[name] = PipelineConfig(**{**vars(config.pipeline), "exports": exports})
        self._pipelines = {
            name: Pipeline.from_exports(settings, stages=(*PLAN_STAGES, *DENSE_STAGES, *RENDER_STAGES))
            for name, settings in self._configs.items()
        }

    def __call__(self, name: str) -> Pipeline:
        """The pipeline of a name, or the first for an empty one.

        Raises:
            UserError: unknown, with the names that there are.
        """
        if name and name not in self._pipelines:
            raise UserError(f"checkpoint is {name[:80]!r}; here are {', '.join(self.names)}")
        return self._pipelines[name or self.names[0]]


class Visitors:
    """Desks by the cookies of their visitors."""

    def __init__(self, config: AppConfig) -> None:
        self.config, self.limits = config, config.desk
        self.folder = Path(config.desk.folder)
        self.checkpoints = Checkpoints(config)
        self.queue = JobQueue(max_waiting=self.limits.max_waiting)
        self._desks: OrderedDict[str, dict[str, Side]] = OrderedDict()
        self._lock = threading.Lock()
        self._cleaned = -_CLEAN_EVERY
        self.clean()

    def desk(self, token: str | None) -> tuple[str, dict[str, Side]]:
        """The desk of a cookie, or a new one with a new cookie."""
        if token is None or not TOKEN.fullmatch(token):
            token = secrets.token_urlsafe(24)
        self.clean()
        with self._lock:
            if token not in self._desks:
                self._desks[token] = {side: self._side(token, side) for side in SIDES}
            self._desks.move_to_end(token)
            self._forget()
            return token, self._desks[token]

    def clean(self) -> None:
        """Delete sessions and links that nobody opened for `keep_days`; looks at most once an hour."""
        now = time.monotonic()
        with self._lock:
            if not self.limits.keep_days or now - self._cleaned < _CLEAN_EVERY:
                return
            self._cleaned = now
            open_ = {self._folder(token) for token in self._desks}
        oldest = time.time() - 86400 * self.limits.keep_days
        for path in [*self.folder.glob("visitors/*/*.json"), *self.folder.glob("shared/*.json")]:
            with contextlib.suppress(OSError):  # somebody else deleted it
                if path.parent not in open_ and path.stat().st_mtime < oldest:
                    path.unlink()
        for folder in self.folder.glob("visitors/*"):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()

    def _folder(self, token: str) -> Path:
        """Where the sessions of a cookie are. It is a secret and is not written down; its hash names the folder."""
        return self.folder / "visitors" / hashlib.sha256(token.encode()).hexdigest()[:32]

    def _forget(self) -> None:
        """Drop the desks that were not used for the longest time; their sessions are on disk."""
        for token in list(self._desks)[:-1]:
            if len(self._desks) <= self.limits.max_visitors:
                return
            jobs = [side.job for side in self._desks[token].values()]
            if not any(job is not None and job.state in ("waiting", "running") for job in jobs):
                del self._desks[token]

    def _side(self, token: str, side: str) -> Side:
        path = self._folder(token) / f"{side}.json"
        session = None
        if path.is_file():
            try:
                session = read_session(path)
                os.utime(path)  # it is in use
            except UserError as error:
                log.warning("a kept session cannot be read: %s", error)

        def save(session: Session) -> None:
            if session.versions:
                write_session(path, session)

        return Side(queue=self.queue, pipeline=self.checkpoints, check=self.check_plan, save=save, session=session)

    def check_plan(self, plan: Plan) -> None:
        """Refuse plans that would take too long or too much memory.

        Raises:
            UserError: says which limit.
        """
        scene, limits = plan.scene_keys, self.limits
        seconds = scene.num_frames * plan.stride / scene.fps
        if not scene.persons or len(scene.persons) > limits.max_people:
            raise UserError(f"the plan has {len(scene.persons)} people; allowed are 1 to {limits.max_people}")
        if seconds > limits.max_seconds or scene.num_frames * plan.stride > 60 * limits.max_seconds:
            raise UserError(f"the plan lasts {seconds:.1f} s; allowed are {limits.max_seconds:g} s, at most at 60 fps")
        if max(scene.width, scene.height) > limits.max_side or min(scene.width, scene.height) < 16:
            raise UserError(f"the canvas is {scene.width} x {scene.height}; allowed are 16 to {limits.max_side} px")
        if not 0 <= plan.seed < 2**31:
            raise UserError(f"the seed is {plan.seed}; allowed are 0 to {2**31 - 1}")

    def share(self, session: Session) -> str:
        """Keep a copy of a session; gives the secret of the link to it.

        Raises:
            UserError: there is nothing to share.
        """
        if not session.versions:
            raise UserError("there is no plan to share yet; write a prompt or open one")
        token = secrets.token_urlsafe(24)
        write_session(self.folder / "shared" / f"{token}.json", session)
        return token

    def shared(self, token: object) -> Session:
        """A copy of a shared session.

        Raises:
            UserError: there is none of that secret.
        """
        if not isinstance(token, str) or not TOKEN.fullmatch(token):
            raise UserError("this is not the link of a session; it may have been cut off")
        path = self.folder / "shared" / f"{token}.json"
        if not path.is_file():
            raise UserError("there is no session of this link here; it was made on another machine, or deleted")
        session = read_session(path)
        os.utime(path)  # it is in use
        return session
