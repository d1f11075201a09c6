// Level 3, a head: its steps as matrices of queries by keys.

import { button, h, s } from "./dom.js";
import { exact, pixels } from "./numbers.js";
import { largest } from "./colours.js";
import { legend, matrix, table, thumbnail } from "./matrix.js";
import { lines } from "./lines.js";
import { ofStep } from "./words.js";
import { edits, note, picker, words } from "./panel.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./matrix.js").Part} Part */

/** The number of rows and columns in a window. @param {App} app */
export function seen(app) {
  return app.width < 640 ? 12 : pixels(app.width / 40, 24, 40);
}

const DROPOUT = 0.1; // shown for a model that was trained without dropout

/** The steps of a head, and the one in focus. @param {App} app @param {Head} head */
export function stepsOf(app, head) {
  const steps = head.steps.filter((step) => step !== "dropped");
  if (app.state.training != null || head.trace.has(head.name("dropped"))) steps.splice(steps.length - 1, 0, "dropped");
  const step = steps.includes(app.state.step ?? "") ? /** @type {string} */ (app.state.step) : steps[0];
  return { steps, step };
}

/** The dropout of training, if it is shown. @param {App} app @param {Head} head */
function training(app, head) {
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

/** The start of the window in a large matrix; by default at its end. @param {App} app @param {[number, number]} size */
export function windowAt(app, size) {
  return clamped(app, app.state.at ?? size, size);
}

/** @param {App} app @param {Head} head */
export async function headView(app, head) {
  const { state, trace } = app;
  const { steps, step } = stepsOf(app, head);
  const [rows, columns] = head.size;
  const [top, left] = windowAt(app, head.size);
  const [bottom, right] = [Math.min(top + seen(app), rows), Math.min(left + seen(app), columns)];
  const [queryTokens, keyTokens] = trace.tokens(head.attention).map((tokens) => tokens.map((token) => token.display));
  const drop = training(app, head);

  /** @type {Map<string, Part & {recomputed: boolean}>} */
  const parts = new Map();
  for (const name of steps) {
    const step = await head.rows(name, top, bottom, drop);
    const wide = name === "context";
    const [from, to] = wide ? [0, step.columns] : [left, right];
    const data = cut(step, from, to);
    const share = name === "weights" || name === "dropped" || (head.rung === "fixed" && name === "scores");
    const masks = !["scores", "scaled", "capped", "context"].includes(name);
    parts.set(name, {
      name: `${head.name(name)}${head.facts ? `[${head.index}]` : ""}`, data, rows: bottom - top, columns: to - from,
      first: [top, from], rowLabels: queryTokens.slice(top, bottom),
      columnLabels: wide ? null : keyTokens.slice(left, right),
      scale: share ? "share" : "signed", most: share ? Math.max(1, largest(data)) : largest(data) || 1,
      hatched: masks ? (i, j) => masked(parts, head, i, j) : undefined,
      width: 20, height: 20, recomputed: step.recomputed,
    });
  }
  const focus = /** @type {Part & {recomputed: boolean}} */ (parts.get(step));
  const hover = (/** @type {[number, number] | null} */ cell) => app.say(cell ? cellValues(parts, step, cell, queryTokens, keyTokens) : []);
  const pick = (/** @type {[number, number]} */ cell) => app.go({ step, cell: step === "context" ? [cell[0], Math.min(cell[0], columns - 1)] : cell });
  const picture = await focused(app, head, step, parts, { hover, pick, left, right, top, bottom, keyTokens });

  const shown = state.lines && (step === "weights" || step === "dropped");
  const large = rows > seen(app) || columns > seen(app);
  return {
    cells: true,
    picture: [
      h("ol", { class: "steps" }, steps.map((name) => tile(app, name, name === step, /** @type {Part} */ (parts.get(name))))),
      h("figure", { class: "focus" },
        h("div", { class: "scroll" }, shown ? lines(focus) : picture),
        h("figcaption", {}, shown ? null : legend(focus.scale, focus.most, Boolean(focus.hatched)),
          h("code", {}, focus.name),
          focus.recomputed && note("recomputed from queries and keys, in double precision"),
          large && note(`rows ${top} to ${bottom - 1} of ${rows}, columns ${left} to ${right - 1} of ${columns}`))),
      state.table ? h("div", { class: "scroll" }, table(focus)) : null,
      large ? await navigator(app, head, top, left) : null,
    ],
    panel: [
      words(app, ofStep(step, head), edited(app, head, step)),
      controls(app, head, steps, step),
      edits(app, [head]),
    ],
  };
}

/** @param {App} app @param {string} name @param {boolean} current @param {Part} part */
function tile(app, name, current, part) {
  return h("li", {}, h("a", { href: app.address({ step: name }), "aria-current": current ? "step" : false, class: "tile" },
    thumbnail(part, part.scale, part.most, part.hatched && ((i, j) => /** @type {any} */ (part.hatched)(part.first[0] + i, part.first[1] + j))),
    h("span", {}, name)));
}

/**
 * The step in focus, next to its inputs.
 * @param {App} app @param {Head} head @param {string} step @param {Map<string, Part>} parts
 * @param {{hover: (cell: [number, number] | null) => void, pick: (cell: [number, number]) => void,
 *   left: number, right: number, top: number, bottom: number, keyTokens: string[]}} at
 */
async function focused(app, head, step, parts, at) {
  const result = /** @type {Part} */ (parts.get(step));
  const room = Math.min(app.width, 1000);
  if (step === "scores" && head.operand("queries")) {
    const [queries, keys] = [
      await operand(head, "queries", at.top, at.bottom), await operand(head, "keys", at.left, at.right),
    ];
    const strip = pixels(130 / queries.columns, 3, 24);
    const cell = pixels((room - 90 - strip * queries.columns) / result.columns, 9, 44);
    const deep = pixels(150 / keys.columns, 3, 20);
    return product(
      { ...queries, rowLabels: result.rowLabels, width: strip, height: Math.min(cell, 28) },
      { ...transposed(keys), columnLabels: result.columnLabels, width: cell, height: deep },
      { ...result, rowLabels: null, columnLabels: null, width: cell, height: Math.min(cell, 28) }, at);
  }
  if (step === "context" && head.operand("values")) {
    const values = await operand(head, "values", at.left, at.right);
    const weights = /** @type {Part} */ (parts.get(parts.has("dropped") ? "dropped" : "weights"));
    const strip = pixels((0.36 * room) / values.columns, 3, 36);
    const cell = pixels((room - 170 - strip * values.columns) / weights.columns, 9, 44);
    return product(
      { ...weights, width: cell, height: Math.min(cell, 28) },
      { ...values, rowLabels: at.keyTokens.slice(at.left, at.right), width: strip, height: pixels(300 / values.rows, 6, 20) },
      { ...result, rowLabels: null, width: strip, height: Math.min(cell, 28), beside: true }, at);
  }
  const names = [...parts.keys()];
  const before = parts.get(names[names.indexOf(step) - 1]);
  const narrow = app.width < 640 || !before;
  const cell = pixels((room - 90) / result.columns / (narrow ? 1 : 1.75), 9, 44);
  const drawn = matrix({ ...result, width: cell, height: Math.min(cell, 30), onhover: (c) => both(c), onpick: at.pick });
  const source = narrow ? null : matrix({ ...before, rowLabels: null, columnLabels: null, width: cell * 0.6, height: Math.min(cell * 0.6, 18) });
  const both = (/** @type {[number, number] | null} */ c) => {
    source?.light(c?.[0] ?? null, c?.[1] ?? null);
    at.hover(c);
  };
  return h("div", { class: "before-after" },
    source && h("div", {}, h("h3", {}, before?.name.split(".").at(-1)?.replace(/\[.*/, "")), source.element),
    source && h("div", { class: "arrow", "aria-hidden": "true" }, "→"),
    h("div", {}, h("h3", {}, step), drawn.element));
}

/**
 * A matrix product: the left factor on the left, the right factor above the result.
 * @param {Part} left @param {Part} top @param {Part} result
 * @param {{hover: (cell: [number, number] | null) => void, pick: (cell: [number, number]) => void}} at
 */
function product(left, top, result, at) {
  const one = matrix(left);
  const other = matrix(top);
  const made = matrix({
    ...result, onpick: at.pick,
    onhover: (cell) => {
      one.light(cell?.[0] ?? null, null);
      other.light(null, cell?.[1] ?? null);
      at.hover(cell);
    },
  });
  const title = (/** @type {Part} */ part) => {
    const name = part.name.split(".").at(-1)?.replace(/\[.*/, "");
    return h("h3", { class: part.role ?? name }, part.transposed ? `${name}ᵀ` : name, ` ${part.rows} × ${part.columns}`);
  };
  return h("div", { class: "product" },
    h("div", { class: "above" }, title(top), other.element),
    h("div", { class: "beside" }, title(left), one.element),
    h("div", { class: "result" }, title(result), made.element));
}

/** Rows of queries, keys or values. @param {Head} head @param {string} role @param {number} from @param {number} to @returns {Promise<Part>} */
async function operand(head, role, from, to) {
  const place = /** @type {{name: string, index: number}} */ (head.operand(role));
  const matrix = await head.read(role, from, to);
  const name = place.name.endsWith(role) ? `${place.name}[${place.index}]` : place.name;
  return { ...matrix, name, role, first: [from, 0], scale: "signed", most: largest(matrix.data) || 1, width: 6, height: 6 };
}

/** @param {Part} part @returns {Part} */
function transposed(part) {
  const data = new Float64Array(part.rows * part.columns);
  for (let i = 0; i < part.rows; i++) for (let j = 0; j < part.columns; j++) data[j * part.rows + i] = part.data[i * part.columns + j];
  return { ...part, data, rows: part.columns, columns: part.rows, first: [part.first[1], part.first[0]], transposed: true };
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
  /** @type {[number, number]} */ [i, j], /** @type {string[]} */ queries, /** @type {string[]} */ keys,
) {
  /** @type {[string, string][]} */
  const rows = [["query", `${queries[i]} (${i})`]];
  if (step === "context") rows.push(["feature", String(j)]);
  else rows.push(["key", `${keys[j]} (${j})`]);
  for (const [name, part] of parts) {
    if ((name === "context") !== (step === "context")) continue;
    rows.push([name, exact(part.data[(i - part.first[0]) * part.columns + j - part.first[1]])]);
  }
  return rows;
}

/** The edits that change this step. @param {App} app @param {Head} head @param {string} step */
export function edited(app, head, step) {
  const { edits = [], edit_kinds = [] } = app.trace.manifest;
  const kinds = edit_kinds.filter(([, where]) => where === step).map(([name]) => name);
  return edits.filter(
    (edit) => edit.attention === head.attention && (edit.head == null || edit.head === head.index) && kinds.includes(edit.what));
}

/** @param {App} app @param {Head} head @param {string[]} steps @param {string} step */
function controls(app, head, steps, step) {
  const { state, trace } = app;
  const layers = state.rung == null ? trace.layers : trace.rungs;
  const layer = layers.findIndex((one) => one.heads.includes(head));
  const moved = (/** @type {number} */ to) => (state.rung == null ? { layer: to, head: 0 } : { rung: layers[to].title, head: 0 });
  const at = steps.indexOf(step);
  const drawn = state.training;
  return h("section", { class: "controls" },
    h("div", { class: "row" },
      picker("layer", layers.map((one) => one.title), layer, (to) => app.go({ ...moved(to), cell: null })),
      picker("head", layers[layer].heads.map((one) => `Head ${one.label}`), state.head ?? 0, (to) => app.go({ head: to, cell: null }))),
    h("div", { class: "row" },
      button("◀ back", () => app.go({ step: steps[at - 1] }), { disabled: at === 0, title: "←" }),
      button(app.playing ? "❚❚ pause" : "▶ play", () => app.play(), { title: "space", "aria-pressed": String(app.playing) }),
      button("step ▶", () => app.go({ step: steps[at + 1] }), { disabled: at === steps.length - 1, title: "→" })),
    h("div", { class: "row" },
      button("matrix", () => app.go({ lines: false }), { "aria-pressed": String(!state.lines) }),
      button("lines", () => app.go({ lines: true, step: step === "dropped" ? step : "weights" }), { "aria-pressed": String(state.lines) }),
      button("numbers", () => app.go({ table: !state.table }), { "aria-pressed": String(state.table) })),
    app.trace.manifest.kind !== "translation" && head.facts && !head.trace.has(head.name("dropped")) && head.steps.includes("weights")
      ? h("div", { class: "row" },
          button(drawn == null ? "show training's dropout" : "hide dropout", () => app.go({ training: drawn == null ? 0 : null, step: drawn == null ? "dropped" : "weights" })),
          drawn != null && button("sample again", () => app.go({ training: drawn + 1, step: "dropped" })),
          drawn != null && note(`p = ${training(app, head)?.rate}, seed ${drawn}: the same random cells as in training`))
      : null);
}
