// What opens over the page: adding, going on, comparing, examples, reports, saving.

import * as api from "./api.js";

const FILES = {
  "plan.json": "Plan (plan.json)",
  "poses.json": "OpenPose JSON",
  "poses.npy": "Poses (.npy)",
  "video.mp4": "Video (MP4)",
  "video.gif": "Video (GIF)",
  "poses.mp4": "Motion (MP4)",
  "sheet.png": "Sheet (PNG)",
  "session.json": "Session (everything)",
};

export function dialogs({ $, facts, choice, act, edit, settings, complain, showSides, active, boards }) {
  const open = (name) => $(`${name}-dialog`).showModal();
  const onOk = (name, then) => {
    $(`${name}-dialog`).addEventListener("close", () => {
      const value = $(`${name}-dialog`).returnValue;
      if (value === "ok" || value === "show") then(value);
      $(`${name}-dialog`).returnValue = "";
    });
  };
  const whole = (id) => Number($(id).value || 0);

  $("show-help").addEventListener("click", () => open("help"));

  $("show-add").addEventListener("click", () => {
    $("add-prompt").value = active().plan.prompt;
    $("add-seed").value = active().plan.seed;
    open("add");
  });
  onOk("add", () => {
    const { plan } = active();
    const prompt = $("add-prompt").value.trim();
    const add = { op: "add_person", seed: whole("add-seed"), box: room(plan, $("add-where").value) };
    if (prompt && prompt !== plan.prompt) add.prompt = prompt;
    if (!add.box) delete add.box;
    edit([add]);
  });

  $("show-continue").addEventListener("click", () => {
    const { plan } = active();
    const key = Math.max(1, choice.key);
    choice.key = key;
    $("continue-time").textContent = `${plan.persons[0].keys[key]?.time.toFixed(2) ?? "0"} s`;
    $("continue-prompt").value = plan.later?.at(-1)?.prompt ?? plan.prompt;
    $("continue-seed").value = plan.seed;
    $("continue-seconds").value = "";
    open("continue");
  });
  onOk("continue", () => {
    const seconds = $("continue-seconds").value;
    edit([{
      op: "continue", key: choice.key, prompt: $("continue-prompt").value.trim(), seed: whole("continue-seed"),
      ...(seconds ? { seconds: Number(seconds) } : {}),
    }]);
  });

  $("compare").addEventListener("click", () => {
    $("compare-seed").value = Number($("seed").value) + 1;
    $("compare-checkpoint").value = facts.checkpoints.at(-1);
    open("compare");
  });
  onOk("compare", (value) => {
    showSides(true);
    if (value === "show") return;
    const checkpoint = facts.checkpoints.length > 1 ? $("compare-checkpoint").value : "";
    act("generate", { settings: { ...settings(), seed: whole("compare-seed"), checkpoint } }, "b");
  });

  $("show-gallery").addEventListener("click", async () => {
    open("gallery");
    try {
      const examples = await api.get("/api/gallery");
      $("gallery").replaceChildren(...examples.map((example) => {
        const button = document.createElement("button");
        const image = Object.assign(document.createElement("img"), { src: `/api/gallery/${example.name}.webp`, alt: "", width: 384, height: 64 });
        button.append(image, example.prompt);
        button.addEventListener("click", () => {
          $("gallery-dialog").close();
          act("example", { name: example.name });
        });
        const item = document.createElement("li");
        item.append(button);
        return item;
      }));
      if (!examples.length) $("gallery").textContent = "There are none here.";
    } catch (error) {
      complain(error.message);
    }
  });

  $("show-reports").addEventListener("click", async () => {
    open("reports");
    try {
      const reports = await api.get("/api/reports");
      $("reports").replaceChildren(...reports.flatMap(reportNodes));
      if (!reports.length) $("reports").textContent = "Nothing was scored yet: make eval";
    } catch (error) {
      complain(error.message);
    }
  });

  const saves = Object.entries(FILES).map(([name, label]) => saveItem(label, async () => {
    try {
      await api.download(choice.side, name);
    } catch (error) {
      complain(error.message);
    }
  }));
  saves.push(saveItem("Link to this session…", async () => {
    try {
      const { link } = await api.post(`/api/${choice.side}/share`);
      $("link").value = new URL(link, location.origin).href;
      open("link");
      $("link").select();
    } catch (error) {
      complain(error.message);
    }
  }));
  $("saves").replaceChildren(...saves);
  const menu = document.querySelector(".menu");
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  document.addEventListener("click", (event) => {
    if (!menu.contains(event.target)) menu.open = false;
  });
}

function saveItem(label, then) {
  const button = Object.assign(document.createElement("button"), { textContent: label, type: "button" });
  button.addEventListener("click", () => {
    document.querySelector(".menu").open = false;
    then();
  });
  const item = document.createElement("li");
  item.append(button);
  return item;
}

// A box for somebody more, as large as the others, or nothing where the director may choose.
function room(plan, where) {
  if (where === "free") return null;
  const [x0, y0, x1, y1] = plan.persons[0].box;
  const width = Math.min(x1 - x0, 0.45 * plan.width);
  const left = where === "left" ? 0.03 * plan.width : 0.97 * plan.width - width;
  return [left, y0, left + width, y1];
}

function reportNodes(report) {
  return report.tables.map((table) => {
    const node = document.createElement("table");
    const caption = node.createCaption();
    caption.textContent = `${report.stage}: ${table.title} (${report.clips} clips of ${report.split})`;
    const head = node.createTHead().insertRow();
    for (const name of ["", ...table.columns]) {
      head.append(Object.assign(document.createElement(name ? "th" : "td"), { textContent: name, ...(name && { scope: "col" }) }));
    }
    const body = node.createTBody();
    for (const row of table.rows) {
      const line = body.insertRow();
      line.append(Object.assign(document.createElement("th"), { textContent: row[0], scope: "row" }));
      for (const cell of row.slice(1)) line.insertCell().textContent = cell;
    }
    return node;
  });
}
