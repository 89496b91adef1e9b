// The picture of the KV cache: asked for a few times a second while somebody looks at it, drawn on a canvas.

import { ask, byId } from "./api.js";
import { currentId } from "./chat.js";

const PERIOD_MS = 300;
const TROUBLE_MS = 2000;
const MINUTE_MS = 60000;
const HUES = [205, 35, 150, 300, 85, 260, 15, 180, 330, 115, 235, 60]; // neighbours far apart
const canvas = byId("blocks");
const colours = new Map(); // sequence -> place in HUES; kept while it is unfinished
const chosen = byId("engine"); // which of the server's engines is looked at, where there are several
let picture = null, previous = null, rates = [], layout = null;

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const hue = (place) => `oklch(${style("--lightness")} 0.125 ${HUES[place % HUES.length]})`;
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const nameOf = (sequence) => `${sequence.request_id}/${sequence.index}`;

/** Gives each new sequence the first colour that no other has, and takes back those of ended ones. */
function assignColours(sequences) {
  const names = new Set(sequences.map(nameOf));
  for (const name of colours.keys()) if (!names.has(name)) colours.delete(name);
  for (const name of names) {
    if (colours.has(name)) continue;
    const taken = new Set(colours.values());
    let place = 0;
    while (taken.has(place)) place++;
    colours.set(name, place);
  }
}

/** Sizes a canvas in the screen's own pixels and returns what draws on it, in CSS pixels. */
function prepare(target, width, height) {
  const scale = window.devicePixelRatio || 1;
  target.width = Math.round(width * scale);
  target.height = Math.round(height * scale);
  const pen = target.getContext("2d");
  pen.scale(scale, scale);
  return pen;
}

/** One block: free, cached, held by one (fill), by several (a light stripe), and findable again (a notch). */
function drawBlock(pen, x, y, size, { fill, isShared, isFindable, isHeld }, ground) {
  pen.fillStyle = fill;
  pen.fillRect(x, y, size, size);
  if (isShared) {
    pen.fillStyle = ground;
    const inset = size * 0.3;
    pen.fillRect(x + inset, y + inset, size - 2 * inset, size - 2 * inset);
  } else if (isHeld && isFindable && size > 4) {
    pen.fillStyle = ground;
    pen.beginPath();
    pen.moveTo(x + size, y);
    pen.lineTo(x + size, y + size * 0.45);
    pen.lineTo(x + size * 0.55, y);
    pen.fill();
  }
}

function blockAt(cell, tones) {
  const holders = picture.holders[cell], owner = picture.owners[cell], isFindable = picture.findable[cell] > 0;
  const sequence = picture.sequences[owner - 1];
  const held = sequence ? tones.get(nameOf(sequence)) : tones.get("other");
  const fill = holders ? held : isFindable ? tones.get("cached") : tones.get("free");
  return { fill, isShared: holders > 1, isFindable, isHeld: holders > 0, holders, sequence };
}

function palette() {
  const tones = new Map([["free", style("--cell-free")], ["cached", style("--cell-cached")], ["other", style("--dim")]]);
  for (const [name, place] of colours) tones.set(name, hue(place));
  return tones;
}

/** Chooses the largest square that lets all blocks fit into the width and about half of the window's height. */
function arrange(count) {
  const width = canvas.clientWidth, room = Math.max(160, Math.min(window.innerHeight * 0.42, width));
  let pitch = 22;
  while (pitch > 3 && Math.ceil(count / Math.floor(width / pitch)) * pitch > room) pitch -= pitch > 8 ? 1 : 0.5;
  const columns = Math.floor(width / pitch);
  if (count > columns) pitch = width / columns; // no ragged edge on the right
  return { pitch, columns, gap: pitch > 6 ? 2 : 1, width, height: Math.ceil(count / columns) * pitch };
}

function drawBlocks() {
  if (!picture || !canvas.clientWidth) return;
  const count = picture.holders.length, tones = palette(), ground = style("--surface");
  layout = arrange(count);
  canvas.style.height = `${layout.height}px`;
  const pen = prepare(canvas, layout.width, layout.height);
  for (let cell = 0; cell < count; cell++) {
    const x = (cell % layout.columns) * layout.pitch, y = Math.floor(cell / layout.columns) * layout.pitch;
    drawBlock(pen, x, y, layout.pitch - layout.gap, blockAt(cell, tones), ground);
  }
}

function drawLegend() {
  const ground = style("--surface");
  for (const target of document.querySelectorAll(".legend canvas")) {
    const kind = target.dataset.kind, isHeld = !["free", "cached"].includes(kind);
    const fill = isHeld ? hue(0) : style(`--cell-${kind}`);
    const pen = prepare(target, 13, 13);
    drawBlock(pen, 0, 0, 13, { fill, isHeld, isShared: kind === "shared", isFindable: kind === "kept" }, ground);
  }
}

function drawRates(now) {
  const target = byId("spark"), width = target.clientWidth, height = target.clientHeight;
  if (!width) return;
  const pen = prepare(target, width, height), top = Math.max(1, ...rates.map(([, rate]) => rate));
  pen.strokeStyle = style("--line");
  pen.strokeRect(0, height - 0.5, width, 0);
  if (rates.length < 2) return;
  const x = (at) => width * (1 - (now - at) / MINUTE_MS), y = (rate) => height - 1 - (rate / top) * (height - 4);
  pen.beginPath();
  rates.forEach(([at, rate]) => pen.lineTo(x(at), y(rate)));
  pen.strokeStyle = style("--accent");
  pen.lineWidth = 1.5;
  pen.stroke();
  pen.lineTo(x(rates.at(-1)[0]), height);
  pen.lineTo(x(rates[0][0]), height);
  pen.globalAlpha = 0.13;
  pen.fillStyle = style("--accent");
  pen.fill();
}

/** Tokens per second over the last second or so. */
function rate(metrics, now) {
  if (!previous || metrics.generation_tokens < previous[0][1]) previous = []; // another engine process counts anew
  previous.push([now, metrics.generation_tokens]);
  while (previous.length > 2 && now - previous[0][0] > 1200) previous.shift();
  const [then, tokens] = previous[0];
  return now > then ? ((metrics.generation_tokens - tokens) * 1000) / (now - then) : 0;
}

function percent(share) {
  return Number.isFinite(share) ? `${Math.round(share * 100)} %` : "–";
}

function showFigures(metrics, now) {
  const perSecond = rate(metrics, now);
  rates.push([now, perSecond]);
  rates = rates.filter(([at]) => now - at < MINUTE_MS);
  const { num_blocks: all, num_free_blocks: free, num_cached_blocks: cached, stride, block_size: size } = picture;
  byId("rate").textContent = perSecond >= 100 ? Math.round(perSecond).toLocaleString() : perSecond.toFixed(1);
  byId("running").textContent = picture.num_running;
  byId("waiting").textContent = picture.num_waiting;
  byId("used").textContent = percent((all - free) / all);
  byId("hits").textContent = percent(metrics.prefix_cache_hits / metrics.prefix_cache_queries);
  byId("sizes").textContent =
    `${all.toLocaleString()} blocks of ${size} tokens${stride > 1 ? `, 1 of ${stride} is shown` : ""}`;
  const shared = picture.holders.reduce((sum, holders) => sum + (holders > 1), 0) * stride;
  canvas.setAttribute("aria-label", `${all} blocks: ${all - free} in use by ${picture.num_running} running sequences, ` +
    `${shared} of them shared; ${cached} can be found again; ${free} can be taken.`);
}

function shortName({ request_id: id, index }) {
  return id.replace(/^(\w+-)?(.{8}).*$/, "$1$2") + (index ? ` #${index + 1}` : "");
}

function row(sequence) {
  const made = document.createElement("tr");
  const isMine = currentId && sequence.request_id.startsWith(currentId);
  const name = isMine ? "this chat" : shortName(sequence);
  const isPrompt = sequence.num_computed_tokens < sequence.num_prompt_tokens;
  const state = !sequence.is_running ? "waits" : isPrompt ? "reads" : "writes";
  const cells = [name, state, sequence.num_tokens, sequence.num_cached_tokens, sequence.num_blocks];
  cells.forEach((value, column) => {
    const cell = document.createElement("td");
    if (column === 0 && sequence.num_blocks) {
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = hue(colours.get(nameOf(sequence)));
      cell.append(swatch);
    }
    cell.append(String(value));
    if (column > 1) cell.className = "n";
    made.append(cell);
  });
  return made;
}

function showSequences() {
  const shown = picture.sequences.slice(0, 40).map(row);
  const left = picture.num_running + picture.num_waiting - shown.length;
  if (!shown.length || left > 0) {
    const more = document.createElement("tr");
    const cell = document.createElement("td");
    cell.colSpan = 5;
    cell.className = "dim";
    cell.textContent = shown.length ? `and ${left} more` : "Nothing runs.";
    more.append(cell);
    shown.push(more);
  }
  byId("sequences").replaceChildren(...shown);
}

/** Lets people choose among a server's engines; the one that is shown stays chosen. */
function offerEngines({ num_engines: count, engine }) {
  if (count < 2 || !chosen.hidden) return;
  chosen.hidden = false;
  chosen.replaceChildren(...Array.from({ length: count }, (_, place) => new Option(`of engine ${place}`, place)));
  chosen.value = engine;
}

/** Forgets what was seen of one engine before another one is shown. */
function turn() {
  previous = null;
  rates = [];
  colours.clear();
}

function show(view) {
  offerEngines(view);
  if (!chosen.hidden && chosen.value !== String(view.engine)) return; // another one was chosen meanwhile
  const now = performance.now();
  picture = view.picture;
  for (const name of ["holders", "findable", "owners"]) picture[name] = bytes(picture[name]);
  assignColours(picture.sequences);
  drawBlocks();
  showFigures(view.metrics, now);
  drawRates(now);
  showSequences();
}

function point(event) {
  if (!picture || !layout) return;
  const box = canvas.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / layout.pitch);
  const cell = Math.floor((event.clientY - box.top) / layout.pitch) * layout.columns + column;
  const isInside = column >= 0 && column < layout.columns && cell >= 0 && cell < picture.holders.length;
  byId("pointed").textContent = isInside ? describe(cell) : "\u00a0";
}

function describe(cell) {
  const { holders, sequence, isFindable } = blockAt(cell, new Map());
  const words = [`Block ${1 + cell * picture.stride}`];
  if (holders > 1) words.push(`shared by ${holders}`);
  else if (holders) words.push(sequence ? `of ${sequence.request_id.slice(0, 24)}` : "in use");
  else if (!isFindable) words.push("free");
  if (isFindable) words.push(holders ? "can be found again" : "cached, nobody's");
  return words.join(" · ");
}

const isLookedAt = () => !document.hidden && canvas.clientWidth > 0;

async function look() {
  let waitMs = PERIOD_MS;
  const trouble = byId("trouble");
  if (isLookedAt()) {
    try {
      show(await (await ask(chosen.hidden ? "kv_cache" : `kv_cache/${chosen.value}`)).json());
      trouble.hidden = true;
    } catch (error) {
      trouble.textContent = error.status ? error.message : "The server cannot be reached.";
      trouble.hidden = false;
      waitMs = TROUBLE_MS;
    }
  }
  setTimeout(look, waitMs);
}

chosen.addEventListener("change", turn);
canvas.addEventListener("pointermove", point);
canvas.addEventListener("pointerdown", point);
canvas.addEventListener("pointerleave", () => { byId("pointed").textContent = "\u00a0"; });
const redraw = () => { drawLegend(); drawBlocks(); };
window.addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
drawLegend();
look();
