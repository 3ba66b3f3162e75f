// What the page asks of the server. Every refusal becomes an Error with the server's own words.

async function answer(response) {
  if (response.ok) return response;
  let text = `the server answered ${response.status}`;
  try {
    text = (await response.json()).error ?? text;
  } catch { /* not JSON: the status has to do */ }
  throw new Error(text);
}

export async function get(path, signal) {
  return (await answer(await fetch(path, { signal }))).json();
}

export async function post(path, data) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "X-Desk": "1", "Content-Type": "application/json" },
    body: JSON.stringify(data ?? {}),
  });
  return (await answer(response)).json();
}

export async function upload(side, file, render, limitMb, prompt) {
  if (file.size > limitMb * 2 ** 20) {
    throw new Error(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MB; allowed are ${limitMb} MB`);
  }
  const query = new URLSearchParams({ name: file.name, render: render ? "1" : "0", prompt });
  const response = await fetch(`/api/${side}/import?${query}`, { method: "POST", headers: { "X-Desk": "1" }, body: file });
  return (await answer(response)).json();
}

// Dense poses of a version: { people, frames, values: Float32Array of (people, frames, 18, 3) }.
export async function dense(side, version) {
  const response = await answer(await fetch(`/api/${side}/dense/${version}`));
  const [people, frames] = response.headers.get("X-Shape").split(",").map(Number);
  return { people, frames, values: new Float32Array(await response.arrayBuffer()) };
}

export async function blob(path) {
  return (await answer(await fetch(path))).blob();
}

export async function download(side, name) {
  const url = URL.createObjectURL(await blob(`/api/${side}/file/${name}`));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
