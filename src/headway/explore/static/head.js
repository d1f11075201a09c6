// Level 3, a head: its steps as matrices of queries by keys.

import { button, h, s } from "./dom.js";
import { exact, percent, pixels } from "./numbers.js";
import { largest } from "./colours.js";
import { baseNames, sideBySide } from "./compare.js";
import { legend, matrix as draw, pooled, product, table, thumbnail, transposed } from "./matrix.js";
import { lines } from "./lines.js";
import { nextBars, nextShares, positionOf } from "./next.js";
import { hasFeatures, label, pathView } from "./path.js";
import { pairs } from "./rotary.js";
import { ofStep } from "./words.js";
import { measures } from "./measures.js";
import { edits, note, picker, words } from "./panel.js";
import { sectionOf, whyPanel } from "./why.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./matrix.js").Part} Part */
/** @typedef {Part & {recomputed: boolean}} FullPart  a part that is not drawn smaller */

/** The number of rows and columns in a window. @param {App} app */
export function seen(app) {
  if (app.state.present) return pixels((app.width - 400) / 130, 3, 8);
  return app.width < 640 ? 12 : pixels(app.width / 40, 24, 40);
}

const DROPOUT = 0.1; // shown for a model that was trained without dropout

/** The steps of a head, and the one in focus. @param {App} app @param {Head} head */
export function stepsOf(app, head) {
  const steps = head.path.filter((step) => step !== "dropped");
  if (app.state.training != null || head.trace.has(head.name("dropped"))) steps.splice(steps.indexOf("weights") + 1, 0, "dropped");
  const step = steps.includes(app.state.step ?? "") ? /** @type {string} */ (app.state.step) : head.steps[0];
  return { steps, step };
}

/** The dropout of training, if it is shown. @param {App} app @param {Head} head */
export function training(app, head) {
  if (app.state.training == null || head.trace.has(head.name("dropped"))) return null;
  return { rate: app.trace.manifest.model?.dropout || DROPOUT, seed: app.state.training };
}

/**
 * The start of a window, moved into a matrix of this size.
 * @param {App} app @param {[number, number]} start @param {[number, number]} size @returns {[number, number]}
 */
export function clamped(app, [top, left], [rows, columns]) {
  return [Math.max(0, Math.min(top, rows - seen(app))), Math.max(0, Math.min(left, columns - seen(app)))];
}

/**
 * The start of the window in a large matrix; by default at its end, and in a presentation at its start.
 * @param {App} app @param {[number, number]} size
 */
export function windowAt(app, size) {
  return clamped(app, app.state.at ?? (app.state.present ? [0, 0] : size), size);
}

/** The window: its first row and column, and those after its last ones. @param {App} app @param {[number, number]} size */
export function windowOf(app, size) {
  const [top, left] = windowAt(app, size);
  return { top, left, bottom: Math.min(top + seen(app), size[0]), right: Math.min(left + seen(app), size[1]) };
}

/** @param {App} app @param {Head} head */
export async function headView(app, head) {
  const { state, trace } = app;
  const { steps, step } = stepsOf(app, head);
  const [rows, columns] = head.size;
  const { top, left, bottom, right } = windowOf(app, head.size);
  const tokens = trace.tokens(head.attention).map((tokens) => tokens.map((token) => token.display));
  const parts = await partsOf(app, head, steps, { top, left, bottom, right });
  const focus = parts.get(step);
  const hover = (/** @type {[number, number] | null} */ cell) => app.say(cell ? cellValues(parts, step, cell, tokens) : []);
  const pick = (/** @type {[number, number]} */ cell) => app.go({ step, cell: step === "context" ? [cell[0], Math.min(cell[0], columns - 1)] : cell });
  const opens = !hasFeatures(step) || step === "context";
  const compared = state.diff && focus ? await comparison(app, head, steps, step, focus, { top, left, bottom, right }) : null;
  const picture = compared ?? (focus ? await focused(app, head, step, parts, { onhover: hover, onpick: opens ? pick : undefined }) : await nextBars(app, positionOf(app)));

  const shown = state.lines && (step === "weights" || step === "dropped");
  const large = rows > seen(app) || columns > seen(app);
  return {
    cells: Boolean(focus),
    picture: [
      pathView(app, head, steps, step, parts, steps.includes("next") ? await mostLikely(app) : null),
      h("div", { class: "row title" },
        h("h2", {}, label(head, step), focus?.size && h("span", { class: "shape" }, `  ${focus.size.join(" × ")}`)),
        controls(app, head, steps, step)),
      h("figure", { class: "focus" },
        h("div", { class: "scroll" }, shown && focus ? lines(focus) : picture),
        focus && h("figcaption", {}, shown || compared ? null : legend(focus.scale, focus.most, Boolean(focus.hatched)),
          h("code", {}, focus.name),
          focus.recomputed && note(step === "output" ? (head.edits(step).length ? "the context of this head in its place, without W_output" : "this head's part, recomputed from its context and W_output, in double precision") : "recomputed from queries and keys, in double precision"),
          large && note(`rows ${top} to ${bottom - 1} of ${rows}, columns ${left} to ${right - 1} of ${columns}`))),
      state.table && focus ? h("div", { class: "scroll" }, table(focus)) : null,
      large ? await navigator(app, head, top, left) : null,
    ],
    panel: [
      words(app, ofStep(step, head), head.edits(step)),
      await whyPanel(app, sectionOf(head, step), head),
      measures(app, head),
      edits(app, [head]),
    ],
  };
}

/**
 * The matrices of the steps, in the window: queries in rows, keys in columns, and all features.
 * @param {App} app @param {Head} head @param {string[]} steps
 * @param {{top: number, left: number, bottom: number, right: number}} window @returns {Promise<Map<string, FullPart>>}
 */
export async function partsOf(app, head, steps, { top, left, bottom, right }) {
  const [queries, keys] = head.trace.tokens(head.attention).map((tokens) => tokens.map((token) => token.display));
  const [rows, columns] = head.size;
  const drop = training(app, head);
  /** @type {Map<string, FullPart>} */
  const parts = new Map();
  for (const name of steps.filter((one) => one !== "next")) {
    const ofKeys = /keys$|values$/.test(name);
    const [from, to] = ofKeys ? [left, right] : [top, bottom];
    const all = await head.rows(name, from, to, drop);
    const wide = hasFeatures(name);
    const share = name === "weights" || name === "dropped" || (head.rung === "fixed" && name === "scores");
    const data = wide ? all.data : cut(all, left, right);
    parts.set(name, {
      name: wide && !head.trace.has(head.name(name)) ? name : `${head.name(name)}${head.facts ? `[${head.index}]` : ""}`, title: label(head, name),
      data, rows: to - from, columns: wide ? all.columns : right - left, size: [ofKeys ? columns : rows, wide ? all.columns : columns],
      first: [from, wide ? 0 : left], rowLabels: (ofKeys ? keys : queries).slice(from, to), columnLabels: wide ? null : keys.slice(left, right),
      scale: share ? "share" : "signed", most: share ? Math.max(1, largest(data)) : largest(data) || 1,
      hatched: wide || ["scores", "scaled", "capped"].includes(name) ? undefined : (i, j) => masked(parts, head, i, j),
      width: 20, height: 20, recomputed: all.recomputed, role: roleOf(name),
    });
  }
  return parts;
}

/**
 * The step before the edit, or in the other model, next to the step as it is.
 * @param {App} app @param {Head} head @param {string[]} steps @param {string} step @param {Part} focus
 * @param {{top: number, left: number, bottom: number, right: number}} window
 */
async function comparison(app, head, steps, step, focus, window) {
  const { base } = app;
  if (!base) return null;
  const before = base.head(head.attention, head.index);
  if (head.index >= (before.facts?.heads ?? 1) || !before.path.includes(step)) return note(`${base.manifest.title} has no ${label(head, step)} in this head.`);
  const parts = await partsOf(app, before, steps.filter((one) => before.path.includes(one)), window);
  return sideBySide(app, /** @type {Part} */ (parts.get(step)), focus, baseNames(app));
}

/** The color of a step. @param {string} step */
function roleOf(step) {
  return { queries: "queries", keys: "keys", values: "values" }[/** @type {string} */ (step.split("_").at(-1))] ?? (hasFeatures(step) && step !== "context" ? "" : "weights");
}

/** The most likely next token, for a tile. @param {App} app */
async function mostLikely(app) {
  const shares = await nextShares(app, positionOf(app));
  if (!shares) return null;
  const best = shares.indexOf(shares.reduce((most, x) => Math.max(most, x), 0));
  return `${app.trace.manifest.vocabulary?.[best] ?? best} ${percent(shares[best])}`;
}

/**
 * What a step is computed from: the factors of a product, the terms of a sum, or the step before.
 * @param {App} app @param {Head} head @param {string} step @param {Map<string, FullPart>} parts
 * @returns {Promise<{left?: Part, top?: Part, terms?: Part[], before?: FullPart | null}>}
 */
export async function inputsOf(app, head, step, parts) {
  const part = (/** @type {string} */ name) => /** @type {FullPart} */ (parts.get(name));
  const result = part(step);
  const role = /** @type {string} */ (step.split("_").at(-1));
  const chain = ["queries", "keys", "values"].includes(role) ? head.chain(role) : [];
  const learned = chain[0] === step ? { left: "x", matrix: `W_${{ queries: "query", keys: "key", values: "value" }[role]}` } : step === "output" && !head.edits(step).length ? { left: "context", matrix: "W_output" } : null;
  const matrix = learned && (await head.learned(learned.matrix));
  if (learned && matrix) {
    const left = learned.left === "x" && role !== "queries" ? await asKeys(head, part("x"), result) : part(learned.left);
    return { left, top: { ...left, ...matrix, name: learned.matrix, title: learned.matrix, size: [matrix.rows, matrix.columns], first: [0, 0], rowLabels: null, scale: "signed", most: largest(matrix.data) || 1, role: result.role } };
  }
  if (step === "scores" && head.operand("queries")) {
    const [queries, keys] = [await operand(head, "queries", result.first[0], result.rows), await operand(head, "keys", result.first[1], result.columns)];
    return { left: { ...queries, rowLabels: result.rowLabels }, top: { ...transposed(keys), columnLabels: result.columnLabels } };
  }
  if (step === "context" && head.operand("values")) {
    const weights = part(parts.has("dropped") ? "dropped" : "weights");
    return { left: weights, top: { ...(await operand(head, "values", weights.first[1], weights.columns)), rowLabels: weights.columnLabels } };
  }
  const added = head.trace.manifest.model?.norm?.placement !== "after"; // else the sum is normalized
  const terms = step === "stream" && added && (await updateOf(app, head, result));
  if (terms) return { terms };
  const names = [...parts.keys()];
  const before = chain.length ? chain[chain.indexOf(step) - 1] : ["x", "stream"].includes(step) ? undefined : names[names.indexOf(step) - 1];
  return { before: before && !hasFeatures(before) === !hasFeatures(step) ? part(before) : null };
}

/**
 * The step in focus, next to its inputs.
 * @param {App} app @param {Head} head @param {string} step @param {Map<string, FullPart>} parts
 * @param {{onhover: (cell: [number, number] | null) => void, onpick?: (cell: [number, number]) => void}} acts
 */
async function focused(app, head, step, parts, acts) {
  const result = { .../** @type {FullPart} */ (parts.get(step)), ...acts };
  const { left, top, terms, before } = await inputsOf(app, head, step, parts);
  const room = Math.min(app.width, 1000);
  if (left && top && step === "scores") {
    const [rows, columns] = [pooled(left, Infinity), pooled(top, undefined, Infinity)];
    const strip = pixels(130 / rows.columns, 3, 24);
    const cell = pixels((room - 90 - strip * rows.columns) / result.columns, 9, 44);
    return product(
      { ...rows, width: strip, height: Math.min(cell, 28) },
      { ...columns, width: cell, height: pixels(150 / columns.rows, 3, 20) },
      { ...result, rowLabels: null, columnLabels: null, width: cell, height: Math.min(cell, 28) });
  }
  if (left && top && step === "context") {
    const strip = pixels((0.36 * room) / top.columns, 3, 36);
    const cell = pixels((room - 170 - strip * top.columns) / left.columns, 9, 44);
    return product(
      { ...left, width: cell, height: Math.min(cell, 28) },
      { ...top, width: strip, height: pixels(300 / top.rows, 6, 20) },
      { ...result, rowLabels: null, width: strip, height: Math.min(cell, 28), beside: true });
  }
  if (left && top) return projection(app, left, top, result);
  return terms ? sum(app, terms, result) : beforeAndAfter(app, before ?? null, result);
}

/**
 * A product with a learned matrix, whose long sides are drawn smaller.
 * @param {App} app @param {Part} left @param {Part} matrix @param {Part} result
 */
function projection(app, left, matrix, result) {
  const room = Math.min(app.width, 1000) - 90;
  const factor = pooled(left, Infinity);
  const strip = pixels((0.3 * room) / factor.columns, 3, 16);
  const narrow = pooled(result, Infinity, Math.max(16, Math.floor((0.6 * room) / 5)));
  const cell = pixels((0.62 * room) / narrow.columns, 4, 44);
  const above = pooled(matrix, undefined, narrow.columns);
  return product(
    { ...factor, width: strip, height: 20 },
    { ...above, width: cell, height: pixels(150 / above.rows, 3, 16) },
    { ...narrow, onhover: narrow.columns === result.columns ? result.onhover : undefined, rowLabels: null, width: cell, height: 20 });
}

/** The rows of x for the keys in a window. @param {Head} head @param {Part} x @param {Part} result */
async function asKeys(head, x, result) {
  const rows = await head.rows("x", result.first[0], result.first[0] + result.rows);
  return { ...x, ...rows, first: result.first, rowLabels: result.rowLabels };
}

/** The residual stream before, and the update by all heads. @param {App} app @param {Head} head @param {FullPart} after */
async function updateOf(app, head, after) {
  const { trace } = app;
  const names = [head.before, `${head.block}.attention.output`];
  if (!names.every((name) => trace.has(name))) return null;
  const [before, update] = await Promise.all(names.map((name) => trace.matrix(name, 0, after.first[0], after.first[0] + after.rows)));
  return [{ ...after, ...before, title: "stream before" }, { ...after, ...update, title: "update by all heads" }];
}

/** A sum of matrices, drawn smaller. @param {App} app @param {Part[]} terms @param {Part} total */
function sum(app, terms, total) {
  const wide = Math.max(12, Math.floor((Math.min(app.width, 1000) - 160) / 3 / 5));
  const most = largest(total.data) || 1;
  return h("div", { class: "before-after" }, [...terms, { ...total, title: "stream after" }].map((part, i) => {
    const small = pooled({ ...part, rowLabels: i ? null : part.rowLabels, most }, Infinity, wide);
    return [
      i > 0 && h("div", { class: "plus" }, i === terms.length ? "=" : "+"),
      h("div", {}, h("h3", {}, part.title), draw({ ...small, width: pixels((wide * 5) / small.columns, 5, 40), height: 20, onhover: undefined }).element)];
  }));
}

/** @param {App} app @param {FullPart | null} before @param {Part} result */
function beforeAndAfter(app, before, result) {
  const room = Math.min(app.width, 1000);
  const wide = result.columnLabels == null;
  const narrow = app.width < 640 || !before;
  const most = Math.max(12, Math.floor((room - 90) / (narrow ? 5 : 9)));
  const [after, earlier] = [pooled(result, Infinity, wide ? most : Infinity), before && pooled(before, Infinity, wide ? most : Infinity)];
  const cell = pixels((room - 90) / after.columns / (narrow ? 1 : wide ? 2.2 : 1.75), wide ? 4 : 9, 44);
  const factor = wide ? 1 : 0.6;
  const source = narrow || !earlier ? null : draw({ ...earlier, rowLabels: wide ? earlier.rowLabels : null, columnLabels: null, width: cell * factor, height: wide ? 20 : Math.min(cell * factor, 18) });
  const rotated = before && result.title?.endsWith("rotated") ? h("div", {}) : null;
  const dials = (/** @type {number} */ row) => rotated && before && rotated.replaceChildren(
    h("h3", {}, "each pair of features of ", h("span", { class: "token" }, result.rowLabels?.[row])), pairs(before, result, row, result.role ?? ""));
  const drawn = draw({
    ...after, rowLabels: wide && source ? null : after.rowLabels, width: cell, height: wide ? 20 : Math.min(cell, 30), onpick: result.onpick,
    onhover: (cell) => {
      source?.light(cell?.[0] ?? null, wide ? null : (cell?.[1] ?? null));
      if (cell) dials(cell[0] - result.first[0]);
      if (after.columns === result.columns) result.onhover?.(cell);
    },
  });
  dials(result.rows - 1);
  return [
    h("div", { class: "before-after" },
      source && h("div", {}, h("h3", {}, before?.title), source.element),
      source && h("div", { class: "arrow", "aria-hidden": "true" }, "→"),
      h("div", {}, h("h3", {}, result.title), drawn.element)),
    rotated];
}

/** Rows of queries, keys or values. @param {Head} head @param {string} role @param {number} from @param {number} count @returns {Promise<Part>} */
async function operand(head, role, from, count) {
  const place = /** @type {{name: string, index: number}} */ (head.operand(role));
  const matrix = await head.read(role, from, from + count);
  const inputs = !place.name.endsWith(role);
  return { ...matrix, name: inputs ? place.name : `${place.name}[${place.index}]`, title: inputs ? "x" : role, role, size: [matrix.rows, matrix.columns], first: [from, 0], scale: "signed", most: largest(matrix.data) || 1, width: 6, height: 6 };
}

/** A thumbnail of a head's weights. @param {Head} head */
export async function headThumb(head) {
  if (!head.steps.includes("weights")) return note("not recorded");
  const overview = head.name("overview");
  if (head.trace.has(overview)) {
    const stride = strideOf(head);
    const sampled = await head.trace.matrix(overview, head.index);
    return thumbnail(sampled, "share", 1, (i, j) => !head.allowed(i * stride, j * stride, (j + 1) * stride - 1));
  }
  return thumbnail(await head.rows("weights"), "share", 1, (i, j) => !head.allowed(i, j));
}

/** An overview of the complete matrix with the window. @param {App} app @param {Head} head @param {number} top @param {number} left */
async function navigator(app, head, top, left) {
  const [rows, columns] = head.size;
  const size = seen(app);
  const canvas = await headThumb(head);
  const frame = s("svg", { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none" },
    s("rect", { x: left, y: top, width: Math.min(size, columns), height: Math.min(size, rows), fill: "none", stroke: "var(--accent)", "stroke-width": 2, "vector-effect": "non-scaling-stroke" }));
  const move = (/** @type {number} */ down, /** @type {number} */ along) =>
    app.go({ at: clamped(app, [top + down, left + along], head.size) });
  const map = h("div", { class: "overview" }, canvas, frame);
  map.addEventListener("click", (event) => {
    const box = map.getBoundingClientRect();
    const at = (/** @type {number} */ part, /** @type {number} */ count) => Math.round(part * count - size / 2);
    move(at((event.clientY - box.top) / box.height, rows) - top, at((event.clientX - box.left) / box.width, columns) - left);
  });
  const by = size / 2;
  return h("div", { class: "navigator" }, map,
    h("div", {}, note(head.trace.has(head.name("overview"))
        ? `Overview of all weights: every ${strideOf(head)}th query, and the maximum of ${strideOf(head)} keys. Click to go there.`
        : "All weights. Click to go there."),
      button("▲", () => move(-by, 0), { "aria-label": "window up" }), button("▼", () => move(by, 0), { "aria-label": "window down" }),
      button("◀", () => move(0, -by), { "aria-label": "window left" }), button("▶", () => move(0, by), { "aria-label": "window right" })));
}

/** The distance between the rows of the overview, as in trace_file.py. @param {Head} head */
function strideOf(head) {
  return Math.ceil(head.size[0] / head.trace.manifest.overview);
}

/** Whether a cell is masked: −∞ in the step `masked` or, without that step, not allowed. */
function masked(
  /** @type {Map<string, Part>} */ parts, /** @type {Head} */ head, /** @type {number} */ i, /** @type {number} */ j,
) {
  const part = parts.get("masked");
  return part ? part.data[(i - part.first[0]) * part.columns + j - part.first[1]] === -Infinity : !head.allowed(i, j);
}

/** Some columns of a matrix. @param {{data: ArrayLike<number>, rows: number, columns: number}} matrix @param {number} from @param {number} to */
export function cut({ data, rows, columns }, from, to) {
  if (from === 0 && to === columns) return data;
  const part = new Float64Array(rows * (to - from));
  for (let i = 0; i < rows; i++) for (let j = from; j < to; j++) part[i * (to - from) + j - from] = data[i * columns + j];
  return part;
}

/** The values of a cell for the panel. @returns {[string, string][]} */
function cellValues(
  /** @type {Map<string, Part>} */ parts, /** @type {string} */ step,
  /** @type {[number, number]} */ [i, j], /** @type {string[][]} */ [queries, keys],
) {
  const value = (/** @type {Part} */ part) => exact(part.data[(i - part.first[0]) * part.columns + j - part.first[1]]);
  if (hasFeatures(step)) {
    const part = /** @type {Part} */ (parts.get(step));
    return [["token", `${part.rowLabels?.[i - part.first[0]]} (${i})`], ["feature", String(j)], ["value", value(part)]];
  }
  const steps = [...parts].filter(([name]) => !hasFeatures(name));
  return [["query", `${queries[i]} (${i})`], ["key", `${keys[j]} (${j})`], ...steps.map(([name, part]) => /** @type {[string, string]} */ ([name, value(part)]))];
}

/** @param {App} app @param {Head} head @param {string[]} steps @param {string} step */
function controls(app, head, steps, step) {
  const { state, trace } = app;
  const layers = state.rung == null ? trace.layers : trace.rungs;
  const layer = layers.findIndex((one) => one.heads.includes(head));
  const moved = (/** @type {number} */ to) => (state.rung == null ? { layer: to, head: 0 } : { rung: layers[to].title, head: 0 });
  const at = steps.indexOf(step);
  const drawn = state.training;
  const dropout = app.trace.manifest.kind !== "translation" && head.facts && !head.trace.has(head.name("dropped")) && head.steps.includes("weights");
  return h("div", { class: "row controls" },
    picker("layer", layers.map((one) => one.title), layer, (to) => app.go({ ...moved(to), cell: null })),
    picker("head", layers[layer].heads.map((one) => `Head ${one.label}`), state.head ?? 0, (to) => app.go({ head: to, cell: null })),
    button("◀ back", () => app.go({ step: steps[at - 1] }), { disabled: at === 0, title: "←" }),
    button(app.playing ? "❚❚ pause" : "▶ play", () => app.play(), { title: "space", "aria-pressed": String(app.playing) }),
    button("step ▶", () => app.go({ step: steps[at + 1] }), { disabled: at === steps.length - 1, title: "→" }),
    step === "weights" || step === "dropped" ? button("lines", () => app.go({ lines: !state.lines }), { "aria-pressed": String(state.lines) }) : null,
    app.base && step !== "next" ? button("side by side", () => app.go({ diff: !state.diff }), { "aria-pressed": String(state.diff), title: baseNames(app).join(", ") }) : null,
    head.steps.includes(step) ? button("row by row", () => app.go({ present: true, frame: 0 }), { title: "in a presentation" }) : null,
    button("numbers", () => app.go({ table: !state.table }), { "aria-pressed": String(state.table) }),
    dropout && ["weights", "dropped", "context"].includes(step) && [
      button(drawn == null ? "show dropout as in training" : "hide dropout", () => app.go({ training: drawn == null ? 0 : null, step: drawn == null ? "dropped" : "weights" })),
      drawn != null && button("sample again", () => app.go({ training: drawn + 1, step: "dropped" })),
      drawn != null && note(`p = ${training(app, head)?.rate}, seed ${drawn}: ${app.trace.manifest.model?.dropout ? "the same random cells as in training" : "an example, because this model was trained without dropout"}`)]);
}
