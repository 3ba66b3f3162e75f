// The stage: a key pose that can be taken by the hand, with the mouse, a finger or the keyboard.

import { boxOf, element, skeleton, unit } from "./draw.js";

const HIT = { handle: 2, joint: 1.8, limb: 1.6, edge: 1.2 }; // canvas units of 1/64 of the shorter side

export class Stage {
  // `choice` is {person, joint, key, whole}; `onEdit(edits)`, `onChoose()` tell of what the hand did.
  constructor({ facts, choice, onEdit, onChoose, onKey, onCommand }) {
    Object.assign(this, { facts, choice, onEdit, onChoose, onKey, onCommand });
    this.plan = null;
    this.editable = false;
    this.hand = null;
    this.node = element("svg", { class: "picture", tabindex: "0", role: "application" });
    this.node.addEventListener("pointerdown", (event) => this.take(event));
    this.node.addEventListener("pointermove", (event) => this.drag(event));
    this.node.addEventListener("pointerup", (event) => this.drop(event));
    this.node.addEventListener("pointercancel", () => this.letGo());
    this.node.addEventListener("keydown", (event) => this.key(event));
  }

  show(plan, editable) {
    this.plan = plan;
    this.editable = editable;
    if (!this.hand) this.draw(plan);
  }

  draw(plan) {
    const { person: chosen, joint } = this.choice;
    this.node.replaceChildren();
    if (!plan) return;
    // A plan that is being written shows its newest key pose; the other side's may be shorter.
    const last = plan.persons[0].keys.length - 1;
    const key = this.editable ? Math.min(this.choice.key, last) : last;
    const size = unit(plan);
    this.node.setAttribute("viewBox", `0 0 ${plan.width} ${plan.height}`);
    this.node.style.setProperty("--shape", `${plan.width} / ${plan.height}`);
    plan.persons.forEach((person, p) => {
      const pose = person.keys[key]?.joints;
      if (!pose) return;
      const box = boxOf(person, p, this.facts, size);
      if (p !== chosen) box.setAttribute("stroke-dasharray", `${size} ${size}`);
      this.node.append(box, skeleton(pose, this.facts, size));
      if (p !== chosen || !this.editable) return;
      for (const [x, y] of corners(person.box)) {
        this.node.append(element("rect", {
          class: "handle", x: x - size, y: y - size, width: 2 * size, height: 2 * size, "stroke-width": 0.2 * size,
        }));
      }
      if (pose[joint]?.[2]) {
        this.node.append(element("circle", {
          class: "chosen", cx: pose[joint][0], cy: pose[joint][1], r: 1.7 * size, fill: "none", "stroke-width": 0.45 * size,
        }));
      }
    });
    this.node.setAttribute("aria-label", this.words(plan));
  }

  words(plan) {
    const { person, joint, key } = this.choice; // another side's choice may not exist here
    const point = plan.persons[person]?.keys[key]?.joints[joint];
    if (!point) return "Key pose";
    const where = point[2] ? `at ${point[0].toFixed(1)}, ${point[1].toFixed(1)}` : "not visible";
    return `Key pose ${key + 1}, person ${person + 1}, ${this.facts.joints[joint]} ${where}. Arrows move it.`;
  }

  point(event) {
    const matrix = this.node.getScreenCTM().inverse();
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
    return [at.x, at.y];
  }

  // What is under a point: {kind: handle | joint | body | box, person, ...}, or nothing.
  hit([x, y]) {
    const { plan, choice } = this;
    const size = unit(plan);
    const chosen = plan.persons[choice.person];
    const corner = chosen ? corners(chosen.box).findIndex(([cx, cy]) => Math.hypot(cx - x, cy - y) < HIT.handle * size) : -1;
    const found = [];
    plan.persons.forEach((person, p) => {
      const pose = person.keys[choice.key].joints;
      const bonus = p === choice.person ? 0.3 * size : 0;
      pose.forEach(([jx, jy, seen], joint) => {
        const far = Math.hypot(jx - x, jy - y);
        if (seen && far < HIT.joint * size) found.push({ kind: "joint", person: p, joint, far: far - bonus });
      });
      for (const [a, b] of this.facts.limbs) {
        const far = pose[a][2] && pose[b][2] ? toSegment([x, y], pose[a], pose[b]) : Infinity;
        if (far < HIT.limb * size) found.push({ kind: "body", person: p, far: far + 3 * size - bonus });
      }
      const far = toEdge([x, y], person.box);
      if (far < HIT.edge * size) found.push({ kind: "box", person: p, far: far + 6 * size - bonus });
    });
    found.sort((a, b) => a.far - b.far);
    // A joint on a corner goes before the corner only where it is closer.
    if (corner >= 0 && !(found[0]?.kind === "joint" && found[0].far < 0.8 * size)) {
      return { kind: "handle", person: choice.person, corner };
    }
    return found[0] ?? null;
  }

  take(event) {
    if (!this.plan || !this.editable || event.button > 0) return;
    const start = this.point(event);
    const what = this.hit(start);
    if (!what) return;
    this.node.setPointerCapture(event.pointerId);
    this.choice.person = what.person;
    if (what.kind === "joint") this.choice.joint = what.joint;
    this.hand = { ...what, start, moved: false, plan: this.plan, edits: [] };
    this.onChoose();
    this.draw(this.plan);
  }

  drag(event) {
    if (!this.hand) return;
    const { hand, choice } = this;
    const now = this.point(event);
    const dx = now[0] - hand.start[0];
    const dy = now[1] - hand.start[1];
    if (!hand.moved && Math.hypot(dx, dy) < 0.3 * unit(hand.plan)) return;
    hand.moved = true;
    const { person } = hand;
    if (hand.kind === "joint") {
      const [x, y] = clamp(now, hand.plan);
      hand.edits = [{ op: "move_joint", person, key: choice.key, joint: hand.joint, x, y }];
    } else if (hand.kind === "body" && !choice.whole) {
      hand.edits = [{ op: "move_person", person, key: choice.key, dx, dy }];
    } else if (hand.kind === "handle") {
      const box = resized(hand.plan.persons[person].box, hand.corner, clamp(now, hand.plan), event.shiftKey, hand.plan);
      hand.edits = [{ op: "set_box", person, box }];
    } else {
      hand.edits = [{ op: "move_person", person, dx, dy }];
    }
    this.draw(preview(hand.plan, hand.edits[0]));
  }

  drop() {
    const hand = this.hand;
    this.letGo();
    if (hand?.moved) this.onEdit(hand.edits);
  }

  letGo() {
    this.hand = null;
    this.draw(this.plan);
  }

  key(event) {
    if (!this.plan) return;
    const { choice } = this;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const joints = this.facts.joints.length;
    if (event.ctrlKey || event.metaKey) return;
    if (arrows[event.key] && this.editable) {
      const step = (event.shiftKey ? 4 : 0.5) * unit(this.plan);
      const [dx, dy] = arrows[event.key].map((way) => way * step);
      const { person, joint, key } = choice;
      if (event.altKey) {
        this.onEdit([{ op: "move_person", person, dx, dy, ...(choice.whole ? {} : { key }) }]);
      } else {
        const point = this.plan.persons[person].keys[key].joints[joint];
        if (!point[2]) return;
        const [x, y] = clamp([point[0] + dx, point[1] + dy], this.plan);
        this.onEdit([{ op: "move_joint", person, key, joint, x, y }]);
      }
    } else if (event.key === "[" || event.key === "]") {
      choice.joint = (choice.joint + (event.key === "]" ? 1 : joints - 1)) % joints;
      this.onChoose();
    } else if (event.key === "p" || event.key === "P") {
      choice.person = (choice.person + 1) % this.plan.persons.length;
      this.onChoose();
    } else if (event.key === "Delete" && this.editable) {
      const { person, joint, key } = choice;
      const seen = this.plan.persons[person].keys[key].joints[joint][2];
      this.onEdit([{ op: "show_joint", person, key, joint, visible: seen ? 0 : 1 }]);
    } else if (event.key === "," || event.key === ".") {
      this.onKey(event.key === "," ? -1 : 1);
    } else if (event.key === " ") {
      this.onCommand("play");
    } else {
      return;
    }
    event.preventDefault();
  }
}

const corners = ([x0, y0, x1, y1]) => [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];

const clamp = ([x, y], plan) => [
  Math.round(Math.min(plan.width, Math.max(0, x)) * 100) / 100,
  Math.round(Math.min(plan.height, Math.max(0, y)) * 100) / 100,
];

function toSegment([x, y], a, b) {
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const along = Math.max(0, Math.min(1, ((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy || 1)));
  return Math.hypot(a[0] + along * dx - x, a[1] + along * dy - y);
}

function toEdge(point, box) {
  const c = corners(box);
  return Math.min(...c.map((corner, i) => toSegment(point, corner, c[(i + 1) % 4])));
}

// The box with one corner at a new place; the opposite one stays, and without Shift the proportions do.
function resized(box, corner, [x, y], free, plan) {
  const [fx, fy] = corners(box)[(corner + 2) % 4];
  const least = 2 * unit(plan);
  let width = Math.max(least, Math.abs(x - fx));
  let height = Math.max(least, Math.abs(y - fy));
  const left = corner === 0 || corner === 3;
  const top = corner < 2;
  if (!free) {
    const room = Math.min((left ? fx : plan.width - fx) / (box[2] - box[0]), (top ? fy : plan.height - fy) / (box[3] - box[1]));
    const scale = Math.min(room, Math.max(width / (box[2] - box[0]), height / (box[3] - box[1])));
    width = scale * (box[2] - box[0]);
    height = scale * (box[3] - box[1]);
  }
  const x0 = Math.max(0, left ? fx - width : fx);
  const y0 = Math.max(0, top ? fy - height : fy);
  return [x0, y0, Math.min(plan.width, x0 + width), Math.min(plan.height, y0 + height)];
}

// How the plan looks with an edit, until the server has answered with what it made of it.
function preview(plan, edit) {
  const copy = structuredClone(plan);
  const person = copy.persons[edit.person];
  if (edit.op === "move_joint") {
    person.keys[edit.key].joints[edit.joint] = [edit.x, edit.y, 1];
    return copy;
  }
  const old = person.box;
  let [dx, dy] = [edit.dx ?? 0, edit.dy ?? 0];
  if (edit.op === "move_person" && edit.key === undefined) {
    dx = Math.min(plan.width - old[2], Math.max(-old[0], dx));
    dy = Math.min(plan.height - old[3], Math.max(-old[1], dy));
  }
  const box = edit.box ?? [old[0] + dx, old[1] + dy, old[2] + dx, old[3] + dy];
  const keys = edit.key === undefined ? person.keys : [person.keys[edit.key]];
  const scale = [0, 1].map((axis) => (box[axis + 2] - box[axis]) / (old[axis + 2] - old[axis]));
  for (const key of keys) {
    key.joints = key.joints.map(([x, y, seen]) => [
      (x - old[0]) * scale[0] + box[0], (y - old[1]) * scale[1] + box[1], seen,
    ]);
  }
  if (edit.key === undefined) person.box = box;
  return copy;
}
