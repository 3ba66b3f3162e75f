// One side of the desk: its stage, its motion and its video.

import * as api from "./api.js";
import { element, frameAt, poseAt, skeleton, unit } from "./draw.js";
import { Stage } from "./stage.js";

export class Board {
  constructor(side, { facts, choice, onEdit, onChoose, onKey, onCommand, onState, onFocus }) {
    Object.assign(this, { side, facts, onState });
    this.state = null;
    this.dense = null;
    this.denseOf = null;
    this.videoUrl = null;
    this.videoOf = null;
    this.stopped = false;
    this.stage = new Stage({ facts, choice, onEdit, onChoose, onKey, onCommand });
    this.choice = choice;
    this.motion = element("svg", { class: "picture", role: "img", "aria-label": "Motion, nothing yet" });
    this.video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, loop: false });
    this.video.className = "picture";
    this.video.setAttribute("aria-label", "Rendered video");
    this.empty = Object.assign(document.createElement("div"), { className: "picture empty", textContent: "no video yet" });
    this.facts_line = Object.assign(document.createElement("p"), {
      className: "facts", textContent: "Write a prompt, open a file, or start from an example.",
    });
    this.node = document.createElement("article");
    this.node.className = "card board";
    this.node.setAttribute("aria-label", `Side ${side.toUpperCase()}`);
    this.views = document.createElement("div");
    this.views.className = "views";
    const captions = ["Key pose, to direct", "Motion, 30 frames a second", "Video"];
    [this.stage.node, this.motion, this.empty].forEach((node, i) => {
      const figure = document.createElement("figure");
      const caption = Object.assign(document.createElement("figcaption"), { textContent: captions[i] });
      figure.append(node, caption);
      this.views.append(figure);
    });
    this.views.lastChild.prepend(this.video);
    this.video.hidden = true;
    this.node.append(this.facts_line, this.views);
    this.node.addEventListener("focusin", () => onFocus(side));
    // Before the stage sees it: a hand on this side means this side.
    this.node.addEventListener("pointerdown", () => onFocus(side), true);
  }

  get plan() {
    return this.state?.plan ?? null;
  }

  get busy() {
    return Boolean(this.state?.job?.active);
  }

  get duration() {
    return this.plan ? (this.plan.persons[0].keys.length * this.plan.stride) / this.plan.fps : 0;
  }

  // Ask for news for as long as the board is shown.
  async follow() {
    this.stopped = false;
    this.running = this.running ?? this.poll();
  }

  async poll() {
    let wait = 200;
    while (!this.stopped) {
      try {
        const since = this.state ? this.state.revision : 0;
        await this.take(await api.get(`/api/${this.side}/state?since=${since}`));
        wait = 200;
      } catch (error) {
        if (!this.stopped) this.onState(this, error);
        await new Promise((resolve) => setTimeout(resolve, (wait = Math.min(5000, wait * 2))));
      }
    }
    this.running = null;
  }

  stop() {
    this.stopped = true;
  }

  // Answers may overtake each other: an older state never replaces a newer one.
  async take(state) {
    if (this.state && state.revision < this.state.revision) return;
    this.state = state;
    this.onState(this, null);
    await Promise.all([this.fetchDense(), this.fetchVideo()]);
  }

  async fetchDense() {
    const { version, dense } = this.state;
    if (!dense) {
      this.dense = this.denseOf = null;
    } else if (this.denseOf !== version) {
      this.denseOf = version;
      const found = await api.dense(this.side, version);
      if (this.denseOf === version) this.dense = found;
    }
    this.onState(this, null);
  }

  async fetchVideo() {
    const { version, video } = this.state;
    if (!video) {
      this.videoOf = null;
      this.setVideo(null);
    } else if (this.videoOf !== version) {
      this.videoOf = version;
      const blob = await api.blob(`/api/${this.side}/file/video.mp4`);
      if (this.videoOf === version) this.setVideo(URL.createObjectURL(blob));
    }
  }

  setVideo(url) {
    if (this.videoUrl) URL.revokeObjectURL(this.videoUrl);
    this.videoUrl = url;
    this.video.hidden = !url;
    this.empty.hidden = Boolean(url);
    if (url) {
      this.video.src = url;
      this.video.currentTime = 0;
    } else {
      this.video.removeAttribute("src");
    }
  }

  draw(time) {
    const { plan, state } = this;
    this.views.hidden = !plan;
    if (!plan) return;
    this.stage.show(plan, !state.preview);
    const title = `${plan.prompt}  ·  seed ${plan.seed}`;
    const later = (plan.later ?? []).map((l) => ` · from ${l.time.toFixed(2)} s: ${l.prompt}`).join("");
    const checkpoint = this.facts.checkpoints.length > 1 ? ` · ${state.settings.checkpoint || this.facts.checkpoints[0]}` : "";
    this.facts_line.textContent = title + later + checkpoint;
    this.drawMotion(time);
  }

  drawMotion(time) {
    const { plan, dense } = this;
    this.motion.setAttribute("viewBox", `0 0 ${plan.width} ${plan.height}`);
    for (const node of [this.motion, this.video, this.empty]) node.style.setProperty("--shape", `${plan.width} / ${plan.height}`);
    this.motion.replaceChildren();
    if (!dense) {
      this.motion.setAttribute("aria-label", "Motion, not made yet");
      return;
    }
    const frame = frameAt(dense, time, plan.fps);
    for (let person = 0; person < dense.people; person++) {
      this.motion.append(skeleton(poseAt(dense, person, frame), this.facts, unit(plan)));
    }
    this.motion.setAttribute("aria-label", `Motion, frame ${frame + 1} of ${dense.frames}`);
  }

  // Keep the video at the common clock.
  seek(time, playing) {
    const { video } = this;
    if (!this.videoUrl || !Number.isFinite(video.duration)) return;
    const wanted = Math.min(time, Math.max(0, video.duration - 0.001));
    if (playing && time < video.duration) {
      if (Math.abs(video.currentTime - wanted) > 0.15) video.currentTime = wanted;
      if (video.paused) video.play().catch(() => {});
    } else {
      if (!video.paused) video.pause();
      if (Math.abs(video.currentTime - wanted) > 0.01) video.currentTime = wanted;
    }
  }
}
