// The presentation: one step, section or rung at a time, as large as the window allows.

import { button, h } from "./dom.js";
import { colour, ink, largest } from "./colours.js";
import { contextFrame, count, dotFrame, rowOf, softmaxFrames, tileFrames } from "./frames.js";
import { cut, inputsOf, partsOf, seen, stepsOf, training, windowOf } from "./head.js";
import { rungAt } from "./ladder.js";
import { equation } from "./math.js";
import { LARGE, matrix, pooled, product } from "./matrix.js";
import { nextBars, positionOf } from "./next.js";
import { bracket, pixels, short } from "./numbers.js";
import { note } from "./panel.js";
import { label } from "./path.js";
import { pairs } from "./rotary.js";
import { onLadder } from "./state.js";
import { ofStep } from "./words.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./main.js").View} View */
/** @typedef {import("./state.js").State} State */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./matrix.js").Part} Part */
/** @typedef {import("./head.js").FullPart} FullPart */
/** @typedef {import("./dom.js").Child} Child */
/** @typedef {{title: Child | Child[], sentence: string, equation?: string, names: [string, Partial<State>][], at: number, picture: Child[], fits?: boolean}} Slide  fits: whether the picture has the size of the room already */

const [WIDTH, HEIGHT] = [1920, 1080]; // the sizes in this file and in the style sheet are for such a window
const [SIDE, AROUND, TEXT, DIALS, TITLE] = [80, 340, 70, 140, 50]; // pixels left and right, above and below, of the line of text, of dials, of a title
const [TERMS, LETTERS] = [4, 52]; // of a sum, as many as fit into a line

/** How much larger or smaller than designed everything is drawn, and the room for a picture. */
export function stage() {
  const [width, height] = [document.documentElement.clientWidth, window.innerHeight];
  const zoom = Math.max(Math.min(width / WIDTH, height / HEIGHT), 0.38); // readable on a phone
  return { zoom, narrow: width <= 640, tall: height / zoom, width: width / zoom - SIDE, height: Math.max(height / zoom, 900) - AROUND };
}

/** The name of the largest step before the weights. @param {Head} head */
function scoresOf(head) {
  return ["masked", "capped", "scaled", "scores"].find((step) => head.steps.includes(step));
}

/** What the frames of a step show; null if it has none. @param {Head} head @param {string} step */
function kindOf(head, step) {
  const { facts, rung } = head;
  if (!head.steps.includes(step)) return null;
  if (step === "context" && rung === "tiled") return "tiles";
  const softmax = !facts || (facts.normalizer === "softmax" && (facts.recomputable || facts.additive));
  return step === "weights" && softmax && scoresOf(head) && !head.edits(step).length ? "softmax" : "rows";
}

/** The number of frames of a step. @param {App} app @param {Head} head @param {string} step */
function framesOf(app, head, step) {
  const kind = kindOf(head, step);
  const { top, bottom } = windowOf(app, head.size);
  return kind ? count(kind, bottom - top, head.size[1]) : 1;
}

/**
 * What the next (by = 1) or previous (by = -1) frame, step, section or rung changes in the state; null at the ends.
 * @param {App} app @param {Head | null} head @param {number} by @returns {Partial<State> | null}
 */
export function moved(app, head, by) {
  const { state, trace } = app;
  const within = (/** @type {number} */ frames) => {
    const to = Math.min(state.frame ?? 0, frames - 1) + by;
    return to >= 0 && to < frames ? { frame: to } : null;
  };
  if (head && !state.cell) {
    const { steps, step } = stepsOf(app, head);
    const other = steps[steps.indexOf(step) + by];
    if (state.frame == null) return other ? { step: other } : null;
    return within(framesOf(app, head, step)) ?? (other ? { step: other, frame: by > 0 ? 0 : framesOf(app, head, other) - 1 } : null);
  }
  if (!head && isLadder(app)) {
    const rung = trace.rungs[rungAt(app) + by];
    return within(trace.rungs[rungAt(app)].heads.length) ?? (rung ? { ladder: true, rung: rung.title, frame: by > 0 ? 0 : rung.heads.length - 1 } : null);
  }
  return within(document.querySelectorAll(".names li").length);
}

/** What the player changes. @param {App} app @param {Head | null} head */
export function advanced(app, head) {
  return head && app.state.frame == null && !app.state.cell ? { frame: 0 } : moved(app, head, 1);
}

/** @param {App} app */
function isLadder({ state, trace }) {
  return onLadder(state) || trace.manifest.kind === "ladder";
}

/**
 * The content of the page.
 * @param {App} app @param {Head | null} head @param {() => Promise<View>} view @param {HTMLElement | null} strip  the next token
 * @param {() => void} help
 */
export async function presentation(app, head, view, strip, help) {
  const { state } = app;
  const slide = head && !state.cell ? await stepSlide(app, head) : !head && isLadder(app) ? await rungSlide(app) : viewSlide(app, await view());
  const steps = head && !state.cell && kindOf(head, stepsOf(app, head).step);
  return [
    h("nav", { class: "names", "aria-label": "slides" },
      h("ol", {}, slide.names.map(([name, to], i) => h("li", {}, h("a", { href: app.address(to), "aria-current": i === slide.at ? "step" : false }, name)))),
      // A clicked button does not keep the focus, so that space plays.
      h("span", { class: "row", onmousedown: (/** @type {Event} */ event) => event.preventDefault() },
        steps && button("row by row", () => app.go({ frame: state.frame == null ? 0 : null }), { "aria-pressed": String(state.frame != null) }),
        button("←", () => app.go(moved(app, head, -1) ?? {}), { "aria-label": "back" }),
        button("→", () => app.go(moved(app, head, 1) ?? {}), { "aria-label": "next" }),
        button(app.playing ? "❚❚" : "▶", () => app.play(), { "aria-label": app.playing ? "pause" : "play", title: "space" }),
        button("?", help, { "aria-label": "keys" }),
        button("✕", () => app.go({ present: false, frame: null }), { "aria-label": "leave", title: "p" }))),
    h("header", {}, h("h1", {}, slide.title), slide.equation && equation(slide.equation), h("p", {}, slide.sentence)),
    h("main", { class: "stage" }, h("div", { class: slide.fits ? "picture" : "picture enlarged" }, slide.picture)),
    h("footer", { class: "strip" }, strip),
  ];
}

/** Enlarge a picture that was made for the page as far as the window allows, and reduce any that is too large. */
export function fit() {
  const stage = document.querySelector(".stage");
  const picture = /** @type {HTMLElement | undefined} */ (stage?.firstElementChild);
  if (!stage || !picture) return;
  for (let zoom = picture.matches(".enlarged") ? 4 : 1; zoom > 0.2; zoom *= 0.96) {
    picture.style.setProperty("zoom", String(zoom));
    const [room, { width, height }] = [stage.getBoundingClientRect(), picture.getBoundingClientRect()];
    if (width <= room.width + 1 && height <= room.height + 1 && picture.scrollWidth <= picture.clientWidth) return;
  }
}

/** Parts of another view: the sections of a cell, or the model and the next token. @param {App} app @param {View} view @returns {Slide} */
function viewSlide(app, view) {
  const { trace, state } = app;
  const words = view.panel.find((one) => one instanceof Element && one.matches(".words"));
  const sentence = words instanceof Element ? words.querySelector("p")?.textContent ?? "" : "";
  const picture = h("div", {}, view.picture);
  const parts = [...picture.querySelectorAll(":scope > section, .model > *")].filter((one) => one.childElementCount);
  const names = parts.map((one) => (one.matches(".layers") ? "layers" : one.matches(".next") ? "next token" : one.querySelector("h3")?.textContent ?? ""));
  const at = Math.min(state.frame ?? 0, Math.max(0, parts.length - 1));
  return { title: names[at] ?? picture.querySelector(".choice [aria-current=true]")?.textContent ?? trace.layers[state.layer ?? -1]?.title ?? trace.manifest.title, sentence, names: names.map((name, i) => [name, { frame: i }]), at, picture: [parts[at] ?? picture] };
}

/** The weights and the context of a head of a rung. @param {App} app @returns {Promise<Slide>} */
async function rungSlide(app) {
  const { trace, state } = app;
  const at = rungAt(app);
  const rung = trace.rungs[at];
  const facts = trace.manifest.ladder?.rungs[at];
  const head = rung.heads[Math.min(state.frame ?? 0, rung.heads.length - 1)];
  const shown = [head.steps.includes("dropped") ? "dropped" : "weights", "context"].filter((step) => head.steps.includes(step));
  const parts = await partsOf(app, head, shown, windowOf(app, head.size));
  const many = rung.heads.length > 1 ? ` of head ${head.label}` : "";
  const drawn = inRow(app, [...parts.values()].map((part) => ({ ...part, title: `${part.title}${many}` })), "→");
  return {
    title: [`${at + 1}. `, h("a", { href: app.address({ rung: rung.title, head: rung.heads.indexOf(head), frame: null }) }, rung.title)],
    ...ofRung(facts),
    names: trace.rungs.map((one) => [one.title, { ladder: true, rung: one.title, frame: null }]), at, picture: [drawn], fits: true,
  };
}

/** The idea of a rung as a sentence, and its equation. @param {import("./trace.js").Rung | undefined} rung */
function ofRung(rung) {
  return { sentence: rung ? `${rung.idea[0].toUpperCase()}${rung.idea.slice(1)}.` : "", equation: rung?.equation };
}

/** @param {App} app @param {Head} head @returns {Promise<Slide>} */
async function stepSlide(app, head) {
  const { state, trace } = app;
  const { steps, step } = stepsOf(app, head);
  const layer = [...trace.layers, ...trace.rungs].find((one) => one.heads.includes(head));
  const window = windowOf(app, head.size);
  const parts = await partsOf(app, head, steps, window);
  const kind = state.frame == null ? null : kindOf(head, step);
  const frame = Math.min(state.frame ?? 0, framesOf(app, head, step) - 1);
  /** @type {Child[]} */
  let picture;
  if (step === "next") picture = [h("div", { class: "likely", style: { width: `${Math.min(1300, app.width)}px` } }, await nextBars(app, positionOf(app)))];
  else if (kind === "tiles") picture = await tiles(app, head, frame);
  else if (kind === "softmax") picture = await softmax(app, head, parts, frame);
  else if (kind && step === "context" && head.operand("values")) picture = await mixed(app, head, parts, frame);
  else picture = await whole(app, head, step, parts, kind ? frame : null);
  const { sentence, equation } = ofStep(step, head);
  const text = kind === "tiles" ? ofRung(trace.manifest.ladder?.rungs.find(({ name }) => name === head.rung)) : { sentence: sentence.split(/(?<=\.)\s/)[0], equation };
  return {
    title: [label(head, step), h("small", {}, `${layer?.title ?? ""}, head ${head.label}`)], ...text,
    names: steps.map((one) => [label(head, one).split(", ").at(-1) ?? "", { step: one, frame: null }]), at: steps.indexOf(step), picture, fits: true,
  };
}

/** The first features of a matrix, or the keys of the window, with numbers. @param {App} app @param {Part} part @returns {Part} */
function narrowed(app, part) {
  const columns = Math.min(part.columns, seen(app));
  return { ...part, data: cut(part, 0, columns), columns, large: true };
}

/** Outline rows of a matrix. @param {Part} part @param {number} from @param {number} to */
function lit(part, from, to) {
  return { ...part, lit: { rows: /** @type {[number, number]} */ ([from, to]), columns: /** @type {[number, number]} */ ([0, part.columns]) } };
}

/** Without the numbers: at most so wide. @param {Part} part @param {number} width @param {number} height  of a row @returns {Part} */
function small(part, width, height) {
  const narrow = pooled(part, Infinity, Math.floor(width / 4));
  return { ...narrow, large: true, columnLabels: null, width: pixels(width / narrow.columns, 4, LARGE.width - 1), height };
}

/** Matrices in a row, with numbers and a sign between them. @param {App} app @param {Part[]} parts @param {string} sign */
function inRow(app, parts, sign) {
  const all = parts.map((part) => narrowed(app, part));
  const many = all.map(({ columns }) => columns);
  const columns = stage().narrow ? Math.max(...many) : many.reduce((total, one) => total + one, 0);
  const room = app.width - LARGE.left - (all.length - 1) * 100;
  const height = pixels((stage().height - TITLE - LARGE.top) / all[0].rows, LARGE.height, 110);
  const width = pixels(room / columns, 4, 200);
  return h("div", { class: "before-after" }, all.map((part, i) => [
    i > 0 && h("div", { class: "arrow" }, sign),
    titled(part.title ?? "", { ...part, rowLabels: i && !stage().narrow ? null : part.rowLabels, width, height })]));
}

/** @param {string} title @param {Part} part */
function titled(title, part) {
  const top = part.columnLabels ? 0 : LARGE.top; // rows of matrices with and without labels are aligned
  return h("div", {}, h("h3", { class: part.role, style: { "margin-bottom": `${top}px` } }, title), matrix(part).element);
}

/**
 * A step and what it is computed from; with a row, only until this row.
 * @param {App} app @param {Head} head @param {string} step @param {Map<string, FullPart>} parts @param {number | null} row
 * @returns {Promise<Child[]>}
 */
async function whole(app, head, step, parts, row) {
  const focus = /** @type {FullPart} */ (parts.get(step));
  const { left, top, terms, before } = await inputsOf(app, head, step, parts);
  const until = (/** @type {Part} */ part) => (row == null ? part : lit({ ...part, hidden: (i) => i > row }, row, row + 1));
  const at = (/** @type {Part} */ part) => (row == null ? part : lit(part, row, row + 1));
  const result = narrowed(app, focus);
  const rotated = before && focus.title?.endsWith("rotated");
  const room = { width: app.width - LARGE.left, height: stage().height - (rotated ? DIALS : TEXT) - TITLE - LARGE.top };
  const text = row == null ? counts(app, focus) : left && step === "scores" ? await dot(head, focus, row) : null;
  if (left && top) {
    const [wide, high] = [0.22 * room.width, 0.24 * room.height];
    const height = pixels((room.height - TITLE - high) / result.rows, LARGE.height, 110);
    const width = pixels((room.width - wide - 30) / result.columns, 8, 180);
    const above = pooled(step === "scores" ? top : { ...narrowed(app, top), rowLabels: null }, Math.floor(high / 4), Infinity);
    const factor = { ...above, large: true, rowLabels: null, width, height: Math.min(high / above.rows, LARGE.height - 1) };
    return [product(at(small(left, wide, height)), row == null ? factor : lit(factor, 0, factor.rows), until({ ...result, rowLabels: null, columnLabels: null, width, height })), text];
  }
  const height = pixels(room.height / result.rows, LARGE.height, 110);
  const sources = stage().narrow ? [] : terms ?? (before ? [before] : []);
  const wide = (0.3 * room.width) / Math.max(1, sources.length);
  const width = pixels((room.width - sources.length * (wide + 100)) / result.columns, 8, 200);
  const drawn = [
    ...sources.map((part, i) => titled(part.title ?? "", at({ ...small({ ...narrowed(app, part), most: result.most }, wide, height), rowLabels: i ? null : part.rowLabels }))),
    titled(terms ? "stream after" : focus.title ?? "", until({ ...result, rowLabels: sources.length ? null : result.rowLabels, width, height })),
  ];
  const sign = (/** @type {number} */ i) => (!terms ? "→" : i === terms.length ? "=" : "+");
  return [
    h("div", { class: "before-after" }, drawn.map((one, i) => [i > 0 && h("div", { class: "arrow" }, sign(i)), one])),
    rotated ? h("div", { class: "dials" }, h("span", { class: "token" }, focus.rowLabels?.at(-1)), pairs(before, focus, focus.rows - 1, focus.role ?? "")) : text];
}

/** Which part of a large matrix is drawn. @param {App} app @param {FullPart} part */
function counts(app, { first, rows, columns, size = [rows, columns], columnLabels }) {
  const shown = Math.min(columns, seen(app));
  const what = (/** @type {string} */ name, /** @type {number} */ from, /** @type {number} */ many, /** @type {number} */ all) => (many < all ? `${name} ${from} to ${from + many - 1} of ${all}` : null);
  return note([what("tokens", first[0], rows, size[0]), what(columnLabels ? "keys" : "features", first[1], shown, size[1])].filter(Boolean).join(", "));
}

/** A line of text under a picture. @param {...Child} content */
function line(...content) {
  return h("p", { class: "line" }, ...content);
}

/** The first terms of a sum. @param {string[]} terms */
function plus(terms) {
  let shown = Math.min(TERMS, terms.length);
  while (shown > 1 && terms.slice(0, shown).join(" + ").length > LETTERS) shown--;
  return `${terms.slice(0, shown).join(" + ")}${terms.length > shown ? " + …" : ""}`;
}

/** Two digits. @param {number} x */
function rough(x) {
  return short(Number(x.toPrecision(2)));
}

/** The largest score of a row as a sum of products. @param {Head} head @param {FullPart} part @param {number} row */
async function dot(head, { first, rowLabels, columnLabels, rows, columns }, row) {
  if (head.facts?.additive || !head.operand("queries")) return null;
  const [queries, keys] = [await head.read("queries", first[0], first[0] + rows), await head.read("keys", first[1], first[1] + columns)];
  const { key, query, other, score } = dotFrame(queries, keys, row);
  return line(`score[${rowLabels?.[row]}, ${columnLabels?.[key]}] = ${plus(query.map((x, c) => `${bracket(x)} × ${bracket(other[c])}`))} = `, h("strong", { "data-value": score }, short(score)));
}

/** The rows of a window, with all keys. @param {App} app @param {Head} head @param {string} step @param {FullPart} part */
function allKeys(app, head, step, { first, rows }) {
  return head.rows(step, first[0], first[0] + rows, training(app, head));
}

/** The exponentials of a row, their sum, the division. @param {App} app @param {Head} head @param {Map<string, FullPart>} parts @param {number} at @returns {Promise<Child[]>} */
async function softmax(app, head, parts, at) {
  const part = /** @type {FullPart} */ (parts.get("weights"));
  const step = scoresOf(head) ?? "scores";
  const plain = head.rung === "fixed";
  const numbers = await allKeys(app, head, step, part);
  const may = (/** @type {number} */ i, /** @type {number} */ j) => step === "masked" || head.allowed(i + part.first[0], j);
  const scores = { ...numbers, data: Float64Array.from(numbers.data, (x, i) => (may(Math.floor(i / numbers.columns), i % numbers.columns) ? x : -Infinity)) };
  const frame = softmaxFrames(scores, plain)[at];
  const last = { exponentials: 0, sum: 1, division: 2 }[frame.part] ?? 0;
  const query = part.rowLabels?.[frame.row];
  const keys = head.trace.tokens(head.attention)[1].map((token) => token.display);
  const [from, to] = [part.first[1], part.first[1] + part.columns];
  const row = (/** @type {string} */ name, /** @type {number[]} */ all, /** @type {boolean} */ shown) =>
    h("tr", { "data-row": name.split("(")[0] }, h("th", { scope: "row" }, name), all.slice(from, to).map((x, j) => {
      const fill = name === "weight" && shown && x > 0 ? colour(x, "share", 1) : null;
      return h("td", { "data-value": shown ? x : false, style: fill ? { background: fill, color: ink(fill) } : {}, class: frame.scores[from + j] === -Infinity ? "not" : "" }, shown ? rough(x) : "");
    }));
  const terms = frame.raised.filter((x) => x > 0).map(rough);
  const best = frame.weights.indexOf(Math.max(...frame.weights));
  const others = head.size[1] > part.columns ? ` (all ${head.size[1]} keys)` : "";
  const height = pixels((stage().height - TEXT - TITLE - LARGE.top) / part.rows, 20, 80);
  const narrow = lit({ ...small({ ...part, hidden: (i) => i > frame.row || (i === frame.row && last < 2) }, Math.min(0.15 * app.width, part.columns * height), height), rowLabels: part.rowLabels }, frame.row, frame.row + 1);
  return [
    h("div", { class: "aligned" }, titled("weights", narrow),
      h("table", {},
        h("thead", {}, h("tr", {}, h("th", {}), part.columnLabels?.map((token) => h("th", { scope: "col" }, h("span", { class: "token" }, token))))),
        h("tbody", {},
          row(step, frame.scores, true),
          plain ? null : row("exp(s − max)", frame.raised, true),
          h("tr", {}, h("th", { scope: "row" }, "sum"), h("td", { class: "total", colspan: part.columns, "data-sum": last > 0 ? frame.total : false },
            last > 0 ? `${plus(terms)} = ${short(frame.total)}${others}` : "")),
          row("weight", frame.weights, last > 1)))),
    line([
      plain ? `The scores of the query ${query}.` : `The query ${query}: max = ${short(frame.largest)}, the largest score s of its row.`,
      `The query ${query}: the sum of ${plain ? "its scores" : "the exponentials"} is ${short(frame.total)}.`,
      `${short(frame.raised[best])} / ${short(frame.total)} = ${short(frame.weights[best])}: ${keys[best]} has the largest weight for ${query}.`][last])];
}

/** A row of the context as the sum of weights times values. @param {App} app @param {Head} head @param {Map<string, FullPart>} parts @param {number} row @returns {Promise<Child[]>} */
async function mixed(app, head, parts, row) {
  const step = parts.has("dropped") ? "dropped" : "weights";
  const weights = /** @type {FullPart} */ (parts.get(step));
  const [from, to] = [weights.first[1], weights.first[1] + weights.columns];
  const { left, top } = await inputsOf(app, head, "context", parts);
  const frame = contextFrame(await allKeys(app, head, step, weights), await head.read("values"), row, from, to);
  const keys = /** @type {string[]} */ (weights.columnLabels);
  const used = keys.map((_, j) => j).filter((j) => !weights.hatched?.(weights.first[0] + row, from + j));
  const others = frame.others && largest(frame.others) > 0 ? [frame.others] : [];
  const rows = [...used.map((j) => frame.terms[j]), ...others, frame.total];
  const part = narrowed(app, {
    ...weights, name: "weight × value of each key; the last row: the context", data: Float64Array.from(rows.flat()), rows: rows.length, columns: frame.total.length, first: [0, 0],
    rowLabels: [...used.map((j) => keys[j]), ...others.map(() => "others"), "context"], columnLabels: null, scale: "signed", most: largest(rows.flat()) || 1, hatched: undefined,
  });
  if (!left || !top) return [];
  const room = stage().height - TEXT - TITLE - LARGE.top;
  const height = pixels(room / Math.max(weights.rows, keys.length + 2), LARGE.height, 80);
  const wide = 0.16 * app.width;
  const beside = stage().narrow ? 0 : LARGE.left + wide + 110;
  const strongest = [...used].sort((a, b) => frame.shares[from + b] - frame.shares[from + a]);
  const token = weights.rowLabels?.[row];
  return [
    h("div", { class: "before-after" },
      titled(weights.title ?? "", lit(small(left, wide, height), row, row + 1)), h("div", { class: "arrow" }, "→"),
      titled("weight × value of each key, and their sum", lit({ ...part, width: pixels((app.width - LARGE.left - beside) / part.columns, 8, 180), height }, rows.length - 1, rows.length))),
    line(`context[${token}] = ${plus(strongest.map((j) => `${short(frame.shares[from + j])} × value(${keys[j]})`))}`)];
}

/** The online softmax after a tile of keys, of all queries in the window. @param {App} app @param {Head} head @param {number} at @returns {Promise<Child[]>} */
async function tiles(app, head, at) {
  const { top, bottom } = windowOf(app, head.size);
  const [queries, keys] = head.trace.tokens(head.attention).map((tokens) => tokens.map((token) => token.display));
  const [scores, values, context] = [await head.rows(scoresOf(head) ?? "scores", top, bottom), await head.read("values"), await head.rows("context", top, bottom)];
  const frames = tileFrames(scores, values);
  const frame = frames[at];
  const height = pixels((stage().height - TEXT - TITLE - LARGE.top) / scores.rows, LARGE.height, 110);
  const width = Math.min(100, (0.34 * app.width) / scores.columns);
  const drawn = lit({
    name: "scores", title: "scores", data: scores.data, rows: scores.rows, columns: scores.columns, first: [top, 0], rowLabels: queries.slice(top, bottom),
    columnLabels: width > 60 ? keys : null, scale: "signed", most: largest(scores.data) || 1, hidden: (_, j) => j >= frame.to,
    hatched: (i, j) => scores.data[(i - top) * scores.columns + j] === -Infinity, width, height, large: true, role: "weights",
  }, 0, scores.rows);
  drawn.lit.columns = [frame.from, frame.to];
  const shown = Math.min(values.columns, 4);
  const names = Array.from({ length: shown }, (_, c) => (frame.divided ? `c[${c}] / l` : `c[${c}]`));
  const difference = largest(frame.rows.flatMap(({ output }, i) => output.map((x, c) => x - rowOf(context, i)[c])));
  const rescaled = frame.rows.map(({ shrink }, i) => ({ shrink, i })).filter(({ shrink, i }) => at > 0 && shrink < 1 && shrink > 0 && frames[at - 1].rows[i].total > 0);
  const example = rescaled.at(-1);
  return [
    h("div", { class: "aligned tiles" }, titled("scores", drawn),
      h("table", {},
        h("thead", {}, h("tr", {}, ["m", "exp(m − m′)", "l", ...names].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, frame.rows.map(({ largest: m, shrink, total, output }, i) => h("tr", { style: { height: `${height}px` }, class: rescaled.some((one) => one.i === i) ? "changed-row" : "" },
          [["m", m], ["shrink", shrink], ["l", total], ...output.slice(0, shown).map((c) => ["c", c])].map(([name, x]) =>
            h("td", { "data-name": name, "data-value": x }, name === "shrink" && (frame.divided || at === 0) ? "" : short(Number(x))))))))),
    frame.divided
      ? line("c / l equals the context: the largest difference is ", h("strong", { "data-value": difference }, short(difference)), ".")
      : example
        ? line(`New maximum for ${queries[top + example.i]}: its sum l and output c so far are multiplied by exp(m − m′) = ${short(example.shrink)}.`)
        : line(`Keys ${frame.from} to ${frame.to - 1}: ${at ? "no maximum changed, so nothing is rescaled." : "maximum m, sum l of exp(s − m), output c = Σ exp(s − m) × value."}`)];
}
