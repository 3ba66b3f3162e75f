// The page: fields and buttons to what the server does, and one clock for everything that moves.

import * as api from "./api.js";
import { Board } from "./board.js";
import { dialogs } from "./dialogs.js";
import { still } from "./draw.js";

const $ = (id) => document.getElementById(id);
const choice = { side: "a", person: 0, joint: 4, key: 0, whole: false };
const clock = { time: 0, playing: false, last: 0 };
const boards = {};
let facts;

const active = () => boards[choice.side];
const shownBoards = () => Object.values(boards).filter((board) => !board.node.hidden);
const render = () => $("auto-render").checked;

function say(text) {
  $("said").textContent = text;
}

function complain(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

// One request after another: two quick edits must not overtake each other.
let last = Promise.resolve();
function act(action, data, side = choice.side) {
  last = last.then(async () => {
    try {
      complain("");
      await boards[side].take(await api.post(`/api/${side}/${action}`, { render: render(), ...data }));
      return true;
    } catch (error) {
      complain(error.message);
      boards[side].draw(clock.time);
      return false;
    }
  });
  return last;
}

const edit = (edits) => act("edit", { edits });

function settings() {
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  return {
    prompt: $("prompt").value.trim(),
    seed: Number($("seed").value),
    people: number("people"),
    seconds: number("seconds"),
    guidance: number("guidance"),
    checkpoint: facts.checkpoints.length > 1 ? $("checkpoint").value : "",
  };
}

function fillSettings(found) {
  const known = { ...found, people: found.people ?? "", seconds: found.seconds ?? "", guidance: found.guidance ?? "" };
  known.checkpoint ||= facts.checkpoints[0];
  for (const [name, value] of Object.entries(known)) $(name).value = value;
}

let filled = { a: "", b: "" };
function onState(board, error) {
  if (error) return complain(`no answer from the server (${error.message}); is it still running?`);
  const { state } = board;
  const mark = JSON.stringify(state.settings);
  if (board.side === choice.side && filled[board.side] !== mark && state.plan && !state.preview) {
    filled[board.side] = mark;
    fillSettings(state.settings);
  }
  if (state.job && board.said !== `${state.job.state}${state.revision}` && !state.job.active && board.wasActive) {
    say({ done: "Done.", failed: "It failed.", cancelled: "Cancelled." }[state.job.state] ?? "");
    if (state.job.state === "failed") complain(state.job.error);
  }
  board.wasActive = Boolean(state.job?.active);
  if (board.side === choice.side) refresh();
  board.draw(clock.time);
}

// Everything that depends on the side at hand.
function refresh() {
  const board = active();
  const { state, plan } = board;
  if (!state) return;
  const job = state.job;
  $("undo").disabled = !state.can_undo;
  $("redo").disabled = !state.can_redo;
  $("render").disabled = !plan || (board.busy && job.stage === "video");
  $("status").hidden = !board.busy;
  if (board.busy) {
    const ahead = job.state === "waiting" ? `waiting, ${job.position} before it` : job.stage;
    $("stage-name").textContent = job.total ? `${ahead}, ${job.done} of ${job.total}` : ahead + (job.done ? `, ${job.done}` : "");
    if (job.total) Object.assign($("bar"), { max: job.total, value: job.done });
    else $("bar").removeAttribute("value");
  }
  for (const id of ["direct", "times"]) $(id).hidden = !plan;
  if (!plan) return;
  choice.person = Math.min(choice.person, plan.persons.length - 1);
  choice.key = Math.min(choice.key, plan.persons[0].keys.length - 1);
  $("scrub").max = Math.max(...shownBoards().map((b) => b.duration));
  drawStrip(plan, state.preview);
  fillInspector(plan);
  for (const node of $("direct").querySelectorAll("input, button, select")) node.disabled = state.preview;
  $("delete-person").disabled ||= plan.persons.length < 2;
  $("show-add").disabled ||= plan.persons.length >= facts.max_people;
}

let drawn = null;
function drawStrip(plan, preview) {
  const count = plan.persons[0].keys.length;
  const strip = $("strip");
  if (drawn !== plan) {
    drawn = plan;
    const focused = strip.contains(document.activeElement);
    strip.replaceChildren(...Array.from({ length: count }, (_, key) => {
      const button = document.createElement("button");
      const time = plan.persons[0].keys[key].time;
      const other = (plan.later ?? []).some((l) => l.time <= time + 1e-6);
      const label = Object.assign(document.createElement("span"), { textContent: `${time.toFixed(2)} s` });
      if (other) Object.assign(label, { className: "other", title: "another prompt holds here" });
      button.append(still(plan, key, facts), label);
      button.setAttribute("aria-label", `Key pose ${key + 1} at ${time.toFixed(2)} seconds${other ? ", another prompt" : ""}`);
      button.addEventListener("click", () => toKey(key));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
    if (focused) strip.children[choice.key].firstChild.focus();
  }
  [...strip.children].forEach((item, key) => {
    const current = key === choice.key || (preview && key === count - 1);
    if (current) item.firstChild.setAttribute("aria-current", "true");
    else item.firstChild.removeAttribute("aria-current");
  });
}

function fillInspector(plan) {
  const names = plan.persons.map((_, p) => `person ${p + 1}`);
  if ($("person").options.length !== names.length) {
    $("person").replaceChildren(...names.map((name, p) => new Option(name, p)));
  }
  $("person").value = choice.person;
  $("joint").value = choice.joint;
  const person = plan.persons[choice.person];
  const [x, y, seen] = person.keys[choice.key].joints[choice.joint];
  const values = { "joint-x": x, "joint-y": y, ...Object.fromEntries(person.box.map((edge, i) => [`box-${i}`, edge])) };
  for (const [id, value] of Object.entries(values)) {
    if (document.activeElement !== $(id)) $(id).value = Math.round(value * 100) / 100;
  }
  $("joint-seen").checked = Boolean(seen);
}

function toKey(key) {
  const { plan } = active();
  if (!plan) return;
  choice.key = Math.min(Math.max(key, 0), plan.persons[0].keys.length - 1);
  play(false);
  setTime(plan.persons[0].keys[choice.key].time);
  $("strip").children[choice.key]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  refresh();
}

// The clock.

function setTime(time) {
  clock.time = time;
  $("scrub").value = time;
  $("scrub").setAttribute("aria-valuetext", `${time.toFixed(2)} seconds`);
  $("clock").textContent = `${time.toFixed(2)} s`;
  for (const board of shownBoards()) {
    board.draw(time);
    board.seek(time, clock.playing);
  }
}

function followKey() {
  const { plan } = active();
  if (!plan) return;
  const key = Math.min(plan.persons[0].keys.length - 1, Math.floor((clock.time * plan.fps) / plan.stride + 1e-6));
  if (key !== choice.key) {
    choice.key = key;
    refresh();
  }
}

function play(on) {
  clock.playing = on;
  $("play").textContent = on ? "Stop" : "Play";
  $("play").setAttribute("aria-pressed", on);
  clock.last = performance.now();
  if (on) requestAnimationFrame(tick);
  else for (const board of shownBoards()) board.seek(clock.time, false);
}

function tick(now) {
  if (!clock.playing) return;
  const length = Math.max(...shownBoards().map((board) => board.duration));
  if (length > 0) {
    setTime((clock.time + Math.max(0, now - clock.last) / 1000) % length);
    followKey();
  }
  clock.last = now;
  requestAnimationFrame(tick);
}

// Sides.

function showSides(two) {
  boards.b.node.hidden = !two;
  $("sides").hidden = !two;
  $("boards").classList.toggle("two", two);
  if (two) boards.b.follow();
  else boards.b.stop();
  if (!two) chooseSide("a");
  setTime(clock.time);
}

function chooseSide(side) {
  if (choice.side === side && active().node.classList.contains("active")) return;
  choice.side = side;
  for (const board of Object.values(boards)) {
    board.node.classList.toggle("active", board.side === side && !boards.b.node.hidden);
    board.stage.node.id = board.side === side ? "stage" : "";
  }
  for (const button of document.querySelectorAll("[data-side]")) {
    button.setAttribute("aria-pressed", button.dataset.side === side);
  }
  const { state } = active();
  if (state?.plan) fillSettings(state.settings);
  refresh();
}

function listen() {
  const on = (id, what, event = "click") => $(id).addEventListener(event, what);
  on("ask", (event) => {
    event.preventDefault();
    choice.key = 0;
    act("generate", { settings: settings() });
  }, "submit");
  on("cancel", () => act("cancel"));
  on("undo", () => act("undo"));
  on("redo", () => act("redo"));
  on("render", () => act("render", { guidance: settings().guidance }));
  on("play", () => play(!clock.playing));
  on("scrub", () => { play(false); setTime(Number($("scrub").value)); followKey(); }, "input");
  on("person", () => { choice.person = Number($("person").value); chosen(); }, "change");
  on("joint", () => { choice.joint = Number($("joint").value); chosen(); }, "change");
  on("drag", () => { choice.whole = $("drag").value === "all"; }, "change");
  const here = () => ({ person: choice.person, key: choice.key, joint: choice.joint });
  for (const id of ["joint-x", "joint-y"]) {
    on(id, () => edit([{ op: "move_joint", ...here(), x: Number($("joint-x").value), y: Number($("joint-y").value) }]), "change");
  }
  on("joint-seen", () => edit([{ op: "show_joint", ...here(), visible: $("joint-seen").checked ? 1 : 0 }]), "change");
  for (const i of [0, 1, 2, 3]) {
    on(`box-${i}`, () => {
      const box = [0, 1, 2, 3].map((edge) => Number($(`box-${edge}`).value));
      edit([{ op: "set_box", person: choice.person, box }]);
    }, "change");
  }
  on("delete-person", () => edit([{ op: "delete_person", person: choice.person }]));
  on("set-prompt", () => edit([{ op: "set_prompt", prompt: $("prompt").value.trim() }]));
  on("open-file", () => $("file").click());
  on("file", () => openFile($("file").files[0]), "change");
  on("end-compare", () => showSides(false));
  for (const button of document.querySelectorAll("[data-side]")) button.addEventListener("click", () => chooseSide(button.dataset.side));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, dialog");
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || typing) return;
    event.preventDefault();
    if (!$(event.shiftKey ? "redo" : "undo").disabled) act(event.shiftKey ? "redo" : "undo");
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
  });
}

function chosen() {
  refresh();
  active().draw(clock.time);
  say(active().stage.node.getAttribute("aria-label"));
}

async function openFile(file) {
  $("file").value = "";
  if (!file) return;
  complain("");
  try {
    const side = choice.side;
    // What comes next must see the prompt that is written above: poses have none of their own.
    await boards[side].take(await api.upload(side, file, render(), facts.max_upload_mb, $("prompt").value.trim()));
  } catch (error) {
    complain(error.message);
  }
}

async function start() {
  facts = await api.get("/api/facts");
  const names = facts.joints.map((name) => name.replace("r_", "right ").replace("l_", "left "));
  facts.joints = names;
  $("joint").replaceChildren(...names.map((name, j) => new Option(name, j)));
  for (let people = 1; people <= facts.max_people; people++) $("people").append(new Option(people, people));
  $("guidance").placeholder = facts.guidance;
  $("seconds").max = facts.max_seconds;
  $("prompt").maxLength = facts.max_prompt;
  for (const id of ["checkpoint", "compare-checkpoint"]) $(id).replaceChildren(...facts.checkpoints.map((name) => new Option(name, name)));
  $("checkpoint-field").hidden = facts.checkpoints.length < 2;
  const hands = {
    facts, choice, onEdit: edit, onChoose: chosen, onState, onFocus: chooseSide,
    onKey: (step) => toKey(choice.key + step), onCommand: () => play(!clock.playing),
  };
  for (const side of ["a", "b"]) {
    boards[side] = new Board(side, hands);
    $("boards").append(boards[side].node);
  }
  listen();
  dialogs({ $, facts, choice, clock, act, edit, settings, complain, showSides, active, boards });
  showSides(false);
  const token = new URLSearchParams(location.search).get("open");
  boards.a.state = null;
  await boards.a.take(await api.get("/api/a/state"));
  if (token) {
    history.replaceState(null, "", "/");
    await act("open", { token });
  }
  boards.a.follow();
  document.body.dataset.ready = "1";
}

start().catch((error) => complain(error.message));
