// The labelling page. Everything that comes from devices is put in as text or pixels, never as HTML.
"use strict";

const REASONS = ["random", "low-margin", "near-threshold", "entropy", "ood", "disagreement", "class-quota",
  "out-of-range", "feedback-negative", "schedule", "on-command"];
// S, U and H are taken.
const KEYS = "0123456789abcdefgijklmnopqrtvwxyz";
const MAX_SIDE = 448;
const MAX_CELLS = 2000;

const $ = (id) => document.getElementById(id);
const state = { queue: [], next: null, current: null, done: [], labelled: 0, busy: false, urls: [] };

function make(tag, text) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  return element;
}

function say(text) { $("message").textContent = text || ""; }

async function api(method, path, body) {
  const headers = { authorization: "Bearer " + (sessionStorage.getItem("token") || "") };
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const text = await answer.text();
  let json = null;
  try { json = text ? JSON.parse(text) : null; } catch { /* no JSON: the status says enough */ }
  if (answer.ok) return json;
  const error = new Error((json && json.detail) || answer.status + " " + answer.statusText);
  error.status = answer.status;
  throw error;
}

function failed(error) {
  if (error.status === 401) { leave(); say("The token is not accepted: " + error.message); return; }
  say(error.message);
}

function leave() {
  sessionStorage.removeItem("token");
  $("filter").hidden = true; $("work").hidden = true; $("enter").hidden = false;
  $("token").value = ""; $("token").focus();
}

// The filter in the address: `?model=digits&select=site%3Dberlin&reason=low-margin&reason=random&class=7`.
const asked = (() => {
  const given = new URLSearchParams(location.search), one = {}, more = [];
  for (const key of ["model", "bundle", "device", "reason"]) {
    const all = given.getAll(key);
    if (all.length === 1) one[key] = all[0];
    else more.push(...all.map((value) => [key, value]));
  }
  for (const key of ["select", "class"]) more.push(...given.getAll(key).map((value) => [key, value]));
  return { one, more };
})();

function ask() {
  for (const [key, value] of Object.entries(asked.one)) $(key).value = value;
  asked.one = {};
  const others = asked.more.map(([key, value]) => key + " " + value).join(", ");
  $("only").textContent = others ? "only " + others : ""; $("any").hidden = !others;
}

async function enter() {
  const models = await api("GET", "/api/v1/models");
  const chosen = $("model").value;
  $("model").replaceChildren(...models.items.map((model) => {
    const option = make("option", model.name); option.value = model.name; return option;
  }));
  // A link may say what to label.
  const given = new URLSearchParams(location.search);
  for (const key of ["model", "bundle", "device", "reason"]) if (!chosen && given.get(key)) $(key).value = given.get(key);
  if (chosen) $("model").value = chosen;
  ask();
  $("enter").hidden = true; $("filter").hidden = false;
  await begin();
}

function query(cursor) {
  const given = new URLSearchParams({ state: "unlabelled", limit: "50" });
  for (const key of ["model", "bundle", "device", "reason"]) if ($(key).value) given.set(key, $(key).value.trim());
  // What the form has no field for, of the address this page was opened with.
  for (const [key, value] of asked.more) given.append(key, value);
  if (cursor) given.set("cursor", cursor);
  return "/api/v1/captures?" + given;
}

async function begin() {
  state.queue = []; state.next = undefined; state.done = []; state.labelled = 0;
  await forward();
}

async function fill() {
  while (state.queue.length === 0 && state.next !== null) {
    const page = await api("GET", query(state.next));
    const seen = new Set(state.done.map((one) => one.digest));
    state.queue.push(...page.items.filter((one) => !seen.has(one.digest)));
    state.next = page.next ?? null;
  }
}

async function forward() {
  await fill();
  const next = state.queue.shift();
  if (!next) { $("work").hidden = true; state.current = null; say("Nothing is left to label here."); return; }
  await show(next.digest);
}

async function show(digest) {
  const view = await api("GET", "/api/v1/captures/" + encodeURIComponent(digest) + "/view");
  say("");
  state.current = { digest, classes: classesOf(view) };
  state.urls.splice(0).forEach((url) => URL.revokeObjectURL(url));
  $("input").replaceChildren(...view.inputs.flatMap(inputOf));
  if (view.inputs.length === 0) $("input").append(make("p", "The policy kept no values of this input."));
  $("classes").replaceChildren(...state.current.classes.map((name, at) => {
    const button = make("button"); button.type = "button";
    if (at < KEYS.length) button.append(make("kbd", KEYS[at].toUpperCase()), " ");
    button.append(name);
    button.addEventListener("click", () => act(() => label({ label: name })));
    return button;
  }));
  facts(view.capture);
  progress();
  $("work").hidden = false;
}

function classesOf(view) {
  if (view.classes.length > 0) return view.classes;
  const said = view.capture.document.predicted;
  return said ? [...new Set([said.class])] : [];
}

function facts(capture) {
  const document_ = capture.document, said = document_.predicted;
  const rows = [["bundle", document_.bundle], ["device", document_.prediction.split(".")[0]], ["at", document_.at],
    ["kept for", document_.reasons.join(", ")]];
  if (said) {
    rows.push(["answer", said.class]);
    if (said.confidence != null) rows.push(["confidence", said.confidence.toFixed(3)]);
    if (said.margin != null) rows.push(["margin", said.margin.toFixed(3)]);
  }
  $("facts").replaceChildren(...rows.flatMap(([key, value]) => [make("dt", key), make("dd", value)]));
}

function progress() { $("progress").textContent = state.labelled + " labelled, " + state.queue.length + " more at hand"; }

// ---- inputs as pictures, lines and tables

function inputOf(tensor) {
  const title = make("h3", tensor.name + "  " + tensor.datatype + " [" + tensor.shape.join(", ") + "]");
  if (tensor.base64) return [title, picture(tensor)];
  if (tensor.texts) return [title, ...tensor.texts.map((text) => make("pre", text))];
  const image = imageShape(tensor.shape, tensor.values.length);
  if (image) return [title, canvas(tensor.values, image)];
  const line = lineShape(tensor.shape);
  if (line) return [title, series(tensor.values, line)];
  return [title, table(tensor)];
}

function picture(tensor) {
  const bytes = Uint8Array.from(atob(tensor.base64), (c) => c.charCodeAt(0));
  const url = URL.createObjectURL(new Blob([bytes], { type: tensor.mime }));
  state.urls.push(url);
  const image = make("img"); image.alt = "input " + tensor.name; image.src = url;
  return image;
}

// {height, width, channels, planar} if the tensor can be seen as one picture.
function imageShape(shape, count) {
  const inner = shape.length > 2 && shape[0] === 1 ? shape.slice(1) : shape;
  if (inner.length === 3) {
    if ([1, 3].includes(inner[0])) return { channels: inner[0], height: inner[1], width: inner[2], planar: true };
    if ([1, 3].includes(inner[2])) return { height: inner[0], width: inner[1], channels: inner[2], planar: false };
  }
  if (inner.length === 2 && inner[0] > 4 && inner[1] > 4) {
    return { height: inner[0], width: inner[1], channels: 1, planar: true };
  }
  const side = Math.sqrt(count);
  // A flat square of a small picture, as the digits have it.
  if (shape.length <= 2 && shape[0] === 1 && Number.isInteger(side) && side >= 6 && side <= 64) {
    return { height: side, width: side, channels: 1, planar: true };
  }
  return null;
}

function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  return low < high ? [low, high] : [low === Infinity ? 0 : low, (low === Infinity ? 0 : low) + 1];
}

function canvas(values, { height, width, channels, planar }) {
  const element = make("canvas");
  if (height * width === 0) return make("p", "an empty picture");
  element.width = width; element.height = height;
  const [low, high] = range(values), context = element.getContext("2d"), image = context.createImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      const from = Math.min(channel, channels - 1);
      const value = values[planar ? from * width * height + pixel : pixel * channels + from];
      image.data[pixel * 4 + channel] = value == null ? 0 : 255 * (value - low) / (high - low);
    }
    image.data[pixel * 4 + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  const scale = Math.max(1, Math.floor(MAX_SIDE / Math.max(width, height)));
  element.style.width = width * scale + "px";
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", width + " by " + height + " picture");
  return element;
}

// {lines, length}: [length], [1, length] or [1, channels, length] with something to draw.
function lineShape(shape) {
  const inner = shape.filter((dim, at) => dim !== 1 || at === shape.length - 1);
  if (inner.length === 1 && inner[0] >= 24) return { lines: 1, length: inner[0] };
  if (inner.length === 2 && inner[0] <= 12 && inner[1] >= 24) return { lines: inner[0], length: inner[1] };
  return null;
}

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

function series(values, { lines, length }) {
  const element = make("canvas"), [low, high] = range(values);
  element.width = 900; element.height = 300;
  const context = element.getContext("2d");
  for (let line = 0; line < lines; line++) {
    context.strokeStyle = COLOURS[line % COLOURS.length];
    context.beginPath();
    for (let at = 0; at < length; at++) {
      const value = values[line * length + at];
      if (value == null) continue;
      const x = 10 + at * 880 / Math.max(1, length - 1), y = 290 - (value - low) * 280 / (high - low);
      if (at === 0) context.moveTo(x, y); else context.lineTo(x, y);
    }
    context.stroke();
  }
  const box = make("div");
  box.append(element, make("p", "from " + low.toPrecision(4) + " to " + high.toPrecision(4)));
  return box;
}

function table(tensor) {
  const box = make("div"), grid = make("table"); box.className = "wide";
  const width = Math.max(1, Math.min(32, tensor.shape[tensor.shape.length - 1] || 1));
  const shown = tensor.values.slice(0, MAX_CELLS);
  for (let from = 0; from < shown.length; from += width) {
    const row = make("tr");
    for (const value of shown.slice(from, from + width)) {
      row.append(make("td", value == null ? "–" : String(+value.toPrecision(6))));
    }
    grid.append(row);
  }
  box.append(grid);
  if (shown.length < tensor.values.length || tensor.truncated) box.append(make("p", "… and more"));
  return box;
}

// ---- what people say

async function act(what) {
  if (state.busy) return;
  state.busy = true;
  try { await what(); } catch (error) { failed(error); } finally { state.busy = false; }
}

async function label(word) {
  if (!state.current) return;
  const { digest } = state.current;
  await api("PUT", "/api/v1/captures/" + encodeURIComponent(digest) + "/label", word);
  state.done.push({ digest, counted: word.label !== undefined });
  state.labelled += word.label !== undefined ? 1 : 0;
  await forward();
}

async function undo() {
  const last = state.done.pop();
  if (!last) { say("There is nothing to take back."); return; }
  await api("DELETE", "/api/v1/captures/" + encodeURIComponent(last.digest) + "/label");
  state.labelled -= last.counted ? 1 : 0;
  if (state.current) state.queue.unshift({ digest: state.current.digest });
  await show(last.digest);
}

document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === "u") { act(undo); return; }
  if (!state.current) return;
  if (key === "s") { act(() => label({ skip: true })); return; }
  if (key === "h") { const details = document.querySelector("details"); details.open = !details.open; return; }
  const at = KEYS.indexOf(key), name = at < 0 ? undefined : state.current.classes[at];
  if (name !== undefined) { event.preventDefault(); act(() => label({ label: name })); }
});
$("skip").addEventListener("click", () => act(() => label({ skip: true })));
$("undo").addEventListener("click", () => act(undo));
$("leave").addEventListener("click", leave);
$("any").addEventListener("click", () => { asked.more = []; ask(); act(begin); });
$("filter").addEventListener("submit", (event) => { event.preventDefault(); act(begin); });
$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  act(enter);
});
for (const reason of REASONS) { const option = make("option", reason); option.value = reason; $("reason").append(option); }
if (sessionStorage.getItem("token")) act(enter); else leave();
