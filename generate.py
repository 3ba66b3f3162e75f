"""Prompts or plans to videos: python generate.py prompt="A woman walks to the left." [key=value ...]

  python generate.py prompt="A man in a red shirt waves his right hand for 4 seconds." seed=3 n=2
  python generate.py prompts=configs/chain/prompts.txt   one prompt a line; overview.png shows all of them
  python generate.py plan=outputs/a-man-waves-0/plan.json    renders an edited plan
  python generate.py plan=.../plan.json edits=edits.json     changes a plan first; modules/editing.py lists the edits
  python generate.py poses=poses.npy prompt="A man waves."   a plan from OpenPose JSON or .npy (people, frames, 18, 3)
  python generate.py session=session.json                    what the page of `make app` saved

Settings, all as key=value:
  prompt, prompts, plan      what to make; one of the three, or poses= with a prompt, or session=
  edits=                     edits of every plan before its motion is made
  seed=0 n=1                 n scenes a prompt, with the seeds seed, seed + 1, ...
  people=  seconds=          force the number of people, the duration
  out=outputs                folder of the folders <slug>-<seed>/
  scale=0                    pixels of the video per rendered pixel; 0 makes the shorter side 256 px or more
  name=demo                  which exports: runs/<stage>/<name>/export
  pipeline.render.steps=...  any other setting of configs/chain/demo.yaml, the config where none is named
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from tqdm import tqdm

from configs.chain_schema import GenerateConfig
from configs.cli import run_script, split_arguments
from configs.loader import load_typed
from modules.editing import DIRECTED, apply_edits, read_edits
from modules.errors import UserError
from modules.files import atomic_path
from modules.outputs import FILES, overview, slug, write_result
from modules.pipeline import DENSE_STAGES, PLAN_STAGES, RENDER_STAGES, Pipeline
from modules.pose.importing import read_poses
from modules.pose.io import Plan, read_plan
from modules.session import read_session
from modules.text import check_prompt

# Their values are text as it stands: a prompt may hold whatever YAML would read as something else.
_TEXT_KEYS = ("prompt", "prompts", "plan", "poses", "session", "edits", "out")


def generate(cfg: GenerateConfig) -> list[Path]:
    """Make all scenes and write one folder for each.

    Returns:
        The folders.

    Raises:
        UserError: nothing or too much to make, a bad prompt or plan, a missing export.
    """
    edits = read_edits(cfg.edits) if cfg.edits else []
    given = given_plan(cfg)
    prompts = [] if given is not None else read_prompts(cfg)
    directed = given is None or any(edit["op"] in DIRECTED for edit in edits)
    stages = (*(PLAN_STAGES if directed else ()), *DENSE_STAGES, *RENDER_STAGES)
    pipeline = Pipeline.from_exports(cfg.pipeline, stages=stages)
    plans = [given] if given is not None else make_plans(cfg, pipeline, prompts)
    plans = [apply_edits(plan, edits, pipeline, cfg.edits) for plan in plans]
    edited = bool(edits) or bool(cfg.plan)
    folders = []
    with tqdm(plans, unit="scene", disable=None) as bar:
        for plan in bar:
            prompt = plan.scene_keys.prompt
            bar.set_description(shorten(prompt))
            folder = Path(cfg.out) / f"{slug(prompt)}-{plan.seed}{'-edited' if edited else ''}"
            write_result(folder, pipeline.from_plan(plan), cfg.scale)
            folders.append(folder)
            bar.write(f"{folder}")
    if len(folders) > 1:
        picture = Path(cfg.out) / "overview.png"
        with atomic_path(picture) as path:
            Image.fromarray(overview([folder / "sheet.png" for folder in folders])).save(path)
        print(picture)
    return folders


def given_plan(cfg: GenerateConfig) -> Plan | None:
    """The plan of a file, where one is named.

    Raises:
        UserError: several sources, or a file that cannot be read.
    """
    if sum(bool(given) for given in (cfg.plan, cfg.poses, cfg.session)) > 1:
        raise UserError("give only one of plan=, poses= and session=")
    # Poses have no caption of their own: a prompt goes with them.
    if sum(bool(given) for given in (cfg.prompt and not cfg.poses, cfg.prompts, cfg.plan, cfg.poses, cfg.session)) > 1:
        raise UserError("give only one of prompt=, prompts= and plan= (or session=; poses= takes a prompt= beside it)")
    if cfg.poses:
        check_prompt(cfg.prompt)
        size = (cfg.pipeline.width, cfg.pipeline.height)
        return read_poses(cfg.poses, size=size, prompt=cfg.prompt.strip(), seed=cfg.seed)
    if cfg.session:
        version = read_session(cfg.session).current
        assert version is not None
        return version.plan
    return read_plan(cfg.plan) if cfg.plan else None


def read_prompts(cfg: GenerateConfig) -> list[str]:
    """The prompts of the command line or of the file, checked."""
    if not cfg.prompts:
        check_prompt(cfg.prompt)
        return [cfg.prompt.strip()]
    path = Path(cfg.prompts)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); give a file with one prompt a line") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{path} has no prompts; write one a line")
    for number, prompt in enumerate(prompts, 1):
        try:
            check_prompt(prompt)
        except UserError as error:
            raise UserError(f"{path}, prompt {number}: {error}") from None
    return prompts


def make_plans(cfg: GenerateConfig, pipeline: Pipeline, prompts: list[str]) -> list[Plan]:
    """Plans of all prompts and seeds."""
    jobs = [(prompt, cfg.seed + i) for prompt in prompts for i in range(cfg.n)]
    keys = None
    if cfg.seconds is not None:
        director = pipeline.director
        keys = round(cfg.seconds * director.fps / director.stride)
    return pipeline.plan(
        [prompt for prompt, _ in jobs], [seed for _, seed in jobs], num_people=cfg.people, num_keys=keys
    )


def shorten(prompt: str) -> str:
    return prompt if len(prompt) <= 40 else prompt[:37] + "..."


def main(arguments: list[str]) -> None:
    paths, items, _ = split_arguments(arguments)
    texts = {key: value for key, _, value in (item.partition("=") for item in items) if key in _TEXT_KEYS}
    rest = [item for item in items if item.partition("=")[0] not in _TEXT_KEYS]
    cfg = load_typed(GenerateConfig, paths or ["configs/chain/demo.yaml"], rest)
    for key, value in texts.items():
        setattr(cfg, key, value)
    folders = generate(cfg)
    print(f"{len(folders)} scene{'s' if len(folders) > 1 else ''}: {', '.join(FILES)}")


if __name__ == "__main__":
    run_script(main, __doc__)
