// The online softmax, block by block, of one query; and the memory that it saves.

import { h } from "../../explore/static/dom.js";
import { colour, ink, largest } from "../../explore/static/colours.js";
import { tileFrames } from "../../explore/static/frames.js";
import { bracket, short } from "../../explore/static/numbers.js";
import { matrixOf, softmax } from "./compute.js";
import { difference, list, slider } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {import("../../explore/static/trace.js").Matrix} Matrix */

const [BLOCK, WIDTH, BYTES] = [128, 64, 4]; // keys per block, features of a head, bytes of a float32

/** One query, or with view = "memory" the bytes for a whole text. @param {Record<string, any>} options @param {Figure} figure */
export function draw(options, figure) {
  return options.view === "memory" ? memory(figure) : tiles(options, figure);
}

/** The context as the softmax over all scores gives it. @param {number[]} scores @param {number[][]} values */
export function direct(scores, values) {
  const weights = softmax(scores);
  return values[0].map((_, c) => weights.reduce((total, weight, j) => total + weight * values[j][c], 0));
}

/** @param {Record<string, any>} options @param {Figure} figure */
function tiles(options, figure) {
  const { state } = figure;
  state.scores ??= [...options.scores];
  state.block ??= 2;
  let frame = state.frame ?? (figure.broken ? Infinity : 1); // a fault shows at the end
  /** @type {number[][]} */
  const values = options.values;
  const keys = values.map((_, j) => j);
  const inputs = keys.map((j) => /** @type {HTMLInputElement} */ (h("input", {
    type: "number", step: 0.5, value: state.scores[j], "aria-label": `score of key ${j}`,
    oninput: () => {
      if (!inputs[j].value || !Number.isFinite(Number(inputs[j].value))) return;
      state.scores[j] = Number(inputs[j].value);
      update();
    },
  })));
  const blockHead = h("tr");
  const raisedRow = h("tr");
  const place = h("div", { role: "status" });
  const read = h("div");

  /** The slider of the blocks, which ends at another number for other blocks. */
  function count() {
    const most = Math.ceil(keys.length / state.block) + 1;
    frame = Math.min(frame, most);
    read.replaceChildren(slider("Read", { least: 1, most, value: frame, shown: (x) => (x === most ? "all, and divide" : `${x} of ${most - 1} blocks`) }, (x) => { state.frame = frame = x; update(); }));
  }

  function update() {
    const frames = tileFrames(matrixOf([state.scores]), matrixOf(values), state.block, !figure.broken);
    const at = frame - 1;
    const now = frames[at];
    const inBlock = (/** @type {number} */ j) => !now.divided && j >= now.from && j < now.to;
    blockHead.replaceChildren(h("th", {}, "key"), ...keys.map((j) => h("th", { scope: "col", class: j % state.block ? false : "first", "aria-current": inBlock(j) ? "true" : false }, j)));
    inputs.forEach((input, j) => {
      const fill = colour(state.scores[j], "signed", largest(state.scores) || 1);
      input.parentElement?.setAttribute("class", inBlock(j) ? "inside" : j < now.to ? "past" : "later");
      Object.assign(input.style, { background: fill, color: ink(fill) });
    });
    raisedRow.replaceChildren(h("th", { scope: "row" }, "exp(s − m)"), ...keys.map((j) =>
      h("td", { "data-value": inBlock(j) ? Math.exp(state.scores[j] - now.rows[0].largest) : false }, inBlock(j) ? short(Math.exp(state.scores[j] - now.rows[0].largest)) : j < now.to ? "forgotten" : "not read")));
    if (scrolled.scrollWidth > scrolled.clientWidth) scrolled.scrollLeft = (inputs[now.from].parentElement?.offsetLeft ?? 0) - 90;
    const right = direct(state.scores, values);
    place.replaceChildren(h("div", { class: "scroll" }, history(frames.slice(0, at + 1))), h("p", {}, sentence(frames, at, right)));
    const { output } = now.rows[0];
    figure.say([
      ["numbers in memory", now.divided ? `m, l, c: ${2 + right.length}` : `${now.to - now.from} scores and m, l, c: ${now.to - now.from + 2 + right.length}`], ["the whole row", `${keys.length} scores`],
      ...(now.divided ? /** @type {[string, string][]} */ ([
        ["weight of the last key", `${short(lastWeight(frames[at - 1].rows[0]))}, by the softmax over all keys ${short(softmax(state.scores)[keys.length - 1])}`],
        ["difference of the context from that softmax", short(difference(output, right))]]) : []),
    ]);
  }

  /** Its exponential, divided by the sum so far. @param {{largest: number, total: number}} row */
  function lastWeight({ largest: m, total }) {
    return Math.exp(state.scores[keys.length - 1] - m) / total;
  }

  /** A row for each block so far. @param {ReturnType<typeof tileFrames>} frames */
  function history(frames) {
    const names = values[0].map((_, c) => `c[${c}]`);
    return h("table", { class: "numbers running" },
      h("thead", {}, h("tr", {}, ["after", "m", "exp(m − m′)", "l", ...names].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, frames.map(({ from, to, rows: [{ largest: m, shrink, total, output }], divided }, i) => {
        const cells = /** @type {[string, number | null][]} */ ([["m", divided ? null : m], ["shrink", divided || i === 0 ? null : shrink], ["l", divided ? null : total], ...output.map((c) => ["c", c])]);
        return h("tr", { class: !divided && i > 0 && shrink < 1 ? "changed-row" : false },
          h("th", { scope: "row" }, divided ? "c / l" : from === to - 1 ? `key ${from}` : `keys ${from} to ${to - 1}`), cells.map(([name, x]) => h("td", { "data-name": name, "data-value": x ?? false }, x == null ? "" : short(x))));
      })));
  }

  /** What happened in the last frame. @param {ReturnType<typeof tileFrames>} frames @param {number} at @param {number[]} right */
  function sentence(frames, at, right) {
    const { rows: [now], divided, from, to } = frames[at];
    if (divided) return `The context is c / l = ${list(now.output)}. The softmax over all ${keys.length} keys gives ${list(right)}.`;
    const before = frames[at - 1]?.rows[0];
    if (!before) return `The first block: m is its largest score, l the sum of exp(s − m), c the sum of exp(s − m) × value.`;
    if (now.largest === before.largest) return `No score of this block is above m = ${short(now.largest)}, so nothing is rescaled; the block is only added to l and c.`;
    const factor = Math.exp(before.largest - now.largest);
    const added = state.scores.slice(from, to).reduce((/** @type {number} */ sum, /** @type {number} */ x) => sum + Math.exp(x - now.largest), 0);
    if (figure.broken) return `The maximum rises from ${short(before.largest)} to ${short(now.largest)}, but l = ${short(before.total)} and c still refer to the old one: they are ${short(1 / factor)} times too large next to the new terms.`;
    return `The maximum rises from ${short(before.largest)} to ${short(now.largest)}: l and c so far are multiplied by exp(${short(before.largest)} − ${bracket(now.largest)}) = ${short(factor)}. l = ${short(factor)} × ${short(before.total)} + ${short(added)} = ${short(now.total)}.`;
  }

  count();
  const table = h("table", { class: "numbers keys-table", style: { "--rows": keys.length + 1 } }, h("thead", {}, blockHead), h("tbody", {},
    h("tr", {}, h("th", { scope: "row" }, "score s"), inputs.map((input) => h("td", {}, input))),
    h("tr", {}, h("th", { scope: "row" }, "value"), values.map((row) => h("td", {}, `(${row.join(", ")})`))),
    raisedRow));
  const scrolled = h("div", { class: "scroll" }, table);
  update();
  return h("div", {},
    h("div", { class: "row" },
      slider("Block size", { least: 1, most: keys.length, value: state.block }, (x) => { state.block = x; count(); update(); }), read),
    scrolled, place);
}

/** Bytes for the scores of one head: the whole matrix, or one block per query with m, l and c. @param {number} tokens */
export function bytes(tokens) {
  return { matrix: BYTES * tokens ** 2, tiled: BYTES * tokens * (Math.min(BLOCK, tokens) + 2 + WIDTH) };
}

/** @param {Figure} figure */
function memory(figure) {
  const { state } = figure;
  state.power ??= 12;
  const place = h("div");

  function update() {
    const tokens = 2 ** state.power;
    const { matrix, tiled } = bytes(tokens);
    const most = Math.max(matrix, tiled);
    const bar = (/** @type {string} */ name, /** @type {number} */ size) => h("div", { class: "bar" }, h("span", {}, name),
      h("span", { class: "track" }, h("span", { class: "fill weights", style: { width: `${(100 * size) / most}%` } })), h("span", { class: "number", "data-value": size }, inWords(size)));
    place.replaceChildren(h("div", { class: "bars" }, bar("the matrix", matrix), bar("tiled", tiled)));
    figure.say([["tokens", tokens.toLocaleString("en")], ["the matrix needs", `${short(matrix / tiled)} times as much`]]);
  }
  update();
  return h("div", {}, h("div", { class: "row" }, slider("Tokens", { least: 7, most: 17, value: state.power, shown: (x) => (2 ** x).toLocaleString("en") }, (x) => { state.power = x; update(); })), place,
    h("p", { class: "note" }, `Scores of one head in float32. Tiled: blocks of ${BLOCK} keys for all queries at once, and m, l and c with ${WIDTH} features for each query.`));
}

/** @param {number} size  bytes */
function inWords(size) {
  const power = Math.min(3, Math.floor(Math.log2(size) / 10));
  return `${short(size / 1024 ** power)} ${["bytes", "KiB", "MiB", "GiB"][power]}`;
}
