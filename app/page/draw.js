// Skeletons as SVG, in the colours of OpenPose; sizes follow modules/pose/draw.py.

const NAMESPACE = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  const node = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export const rgb = (color, share = 1) => `rgb(${color.map((c) => Math.round(c * share)).join(" ")})`;

export function unit(plan) {
  return Math.min(plan.width, plan.height) / 64;
}

// One pose: [[x, y, visible] * 18]. Joints that are not seen, and limbs that end in one, are not drawn.
export function skeleton(pose, facts, size) {
  const group = element("g");
  facts.limbs.forEach(([a, b], i) => {
    if (!pose[a][2] || !pose[b][2]) return;
    group.append(element("line", {
      x1: pose[a][0], y1: pose[a][1], x2: pose[b][0], y2: pose[b][1],
      stroke: rgb(facts.limb_colors[i], 0.6), "stroke-width": 1.5 * size, "stroke-linecap": "round",
    }));
  });
  pose.forEach(([x, y, seen], j) => {
    if (seen) group.append(element("circle", { cx: x, cy: y, r: 0.85 * size, fill: rgb(facts.joint_colors[j]) }));
  });
  return group;
}

export function boxOf(person, number, facts, size) {
  const [x0, y0, x1, y1] = person.box;
  return element("rect", {
    x: x0, y: y0, width: x1 - x0, height: y1 - y0, fill: "none",
    stroke: rgb(facts.box_colors[number % facts.box_colors.length]), "stroke-width": 0.35 * size,
  });
}

// A still picture of a key pose, for the strip.
export function still(plan, key, facts) {
  const svg = element("svg", { viewBox: `0 0 ${plan.width} ${plan.height}`, "aria-hidden": "true" });
  plan.persons.forEach((person, p) => {
    svg.append(boxOf(person, p, facts, unit(plan)), skeleton(person.keys[key].joints, facts, unit(plan)));
  });
  return svg;
}

// Poses of a dense frame, as `skeleton` takes them.
export function poseAt(dense, person, frame) {
  const start = (person * dense.frames + frame) * 54;
  return Array.from({ length: 18 }, (_, j) => Array.from(dense.values.subarray(start + 3 * j, start + 3 * j + 3)));
}

export function frameAt(dense, time, fps) {
  return Math.min(dense.frames - 1, Math.max(0, Math.round(time * fps)));
}
