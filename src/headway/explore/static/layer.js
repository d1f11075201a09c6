// Level 2, a layer: its tensors and their shapes.

import { button, h } from "./dom.js";
import { pixels, short } from "./numbers.js";
import { largest } from "./colours.js";
import { baseNames, sideBySide } from "./compare.js";
import { legend, matrix, pooled, table, thumbnail } from "./matrix.js";
import { clamped, cut, headThumb, seen } from "./head.js";
import { edits, note, picker, words } from "./panel.js";
import { step } from "./attention.js";
import { whyPanel } from "./why.js";
import { ofLayer } from "./words.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./trace.js").Layer} Layer */
/** @typedef {import("./attention.js").Head} Head */

const POOLED = 24; // maximum rows of a picture in a box
const COMPLETE = 2 ** 20; // numbers; of a larger tensor the picture shows some rows only

/** @param {App} app @param {Layer} layer */
export async function layerView(app, layer) {
  const { trace, state } = app;
  const at = trace.layers.indexOf(layer);
  const attention = layer.heads[0].attention.replace(/\.heads\.\d+$/, "");
  const before = at === 0 ? "embedded" : `${trace.layers[at - 1].name}.after_mlp`;
  const own = (/** @type {string} */ name) => step(layer.name, name);
  const inside = (/** @type {string} */ name) => step(attention, name);
  const box = (/** @type {string} */ name, /** @type {string} */ title, /** @type {string} */ role = "") => tensorBox(app, name, title, role);
  const roles = ["queries", "keys", "values"];
  const projected = await Promise.all(roles.map((role) => headsBox(app, layer, role)));
  const plus = h("span", { class: "plus", title: "added to the residual stream" }, "+");
  const rows = [
    [
      await box(before, at === 0 ? "embedded" : "stream"), await box(own("attention_norm"), "norm"),
      projected.some(Boolean) && h("div", { class: "column" }, projected),
      await headsColumn(app, layer), await headsBox(app, layer, "context"),
      await box(inside("output"), "output"),
    ],
    [
      trace.shapes.has(own("after_attention")) && plus, await box(own("after_attention"), "stream"),
      await box(own("mlp_norm"), "norm"), await box(own("mlp.hidden"), "MLP, hidden"), await box(own("mlp.output"), "MLP, output"),
      trace.shapes.has(own("after_mlp")) && plus.cloneNode(true), await box(own("after_mlp"), "stream"),
    ],
  ].map((row) => row.filter(Boolean));
  const opened = state.tensor && trace.has(state.tensor) ? await tensorView(app, state.tensor) : null;
  const share = trace.manifest.changes?.[layer.name];
  return {
    cells: Boolean(opened),
    picture: [
      ...rows.filter((row) => row.length).map((row) => h("div", { class: "flow" }, row.flatMap((one, i) => {
        const sign = one instanceof HTMLElement && one.classList.contains("plus");
        const after = row[i - 1];
        const arrow = i > 0 && !sign && !(after instanceof HTMLElement && after.classList.contains("plus"));
        return [arrow && h("span", { class: "arrow", "aria-hidden": "true" }, "→"), one];
      }))),
      h("div", { class: "row" }, legend("share", 1, true), note("others: blue is negative, red is positive, each scaled to its largest value")),
      opened,
    ],
    panel: [
      words(app, ofLayer(layer.heads[0], layer.heads.length, trace.manifest)),
      (layer.heads[0].facts?.heads ?? 1) > 1 && trace.manifest.kind === "model" ? await whyPanel(app, "heads", layer.heads[0]) : null,
      share && note(`Norm of the update relative to the stream: attention ${short(share[0])}, MLP ${short(share[1] ?? 0)} (mean over tokens).`),
      note("Click a box to see its values, or a head to see its steps."),
      edits(app, layer.heads),
    ],
  };
}

/** The heads of a layer: their weights. @param {App} app @param {Layer} layer */
async function headsColumn(app, layer) {
  return h("div", { class: "box weights" }, h("h3", { class: "weights" }, "weights"),
    h("div", { class: "heads", style: { "--many": Math.ceil(Math.sqrt(layer.heads.length)) } },
      await Promise.all(layer.heads.map((head, i) => headLink(app, head, i, {})))),
    h("span", { class: "shape" }, `${plural(layer.heads.length, "head")} × ${layer.heads[0].size.join(" × ")}`));
}

/** A head's thumbnail, a link to it. @param {App} app @param {Head} head @param {number} i @param {object} where */
export async function headLink(app, head, i, where) {
  return h("a", { class: "head", href: app.address({ ...where, head: i, step: null, tensor: null }), title: `head ${head.label}` }, await headThumb(head), h("span", {}, head.label));
}

/** Queries, keys, values or contexts of all heads. @param {App} app @param {Layer} layer @param {string} role */
async function headsBox(app, layer, role) {
  const names = [...new Set(layer.heads.map((head) => head.name(role)))].filter((name) => app.trace.shapes.has(name));
  if (!names.length) return null;
  const first = app.trace.shapes.get(names[0]) ?? [];
  const count = names.length > 1 ? names.length : first.slice(0, -2).reduce((a, b) => a * b, 1);
  const many = count === 1 ? "" : `${plural(count, "head")} × `;
  return tensorBox(app, names[0], role, role, `${many}${first.slice(-2).join(" × ")}`);
}

/** @param {App} app @param {string} name @param {string} title @param {string} role @param {string} [shape] */
async function tensorBox(app, name, title, role, shape) {
  const sizes = app.trace.shapes.get(name);
  if (!sizes) return null;
  const label = shape ?? sizes.slice(sizes.length > 2 && sizes[0] === 1 ? 1 : 0).join(" × ");
  const there = app.trace.has(name);
  const link = there && { href: app.address({ tensor: name, part: null, at: null }), "aria-current": app.state.tensor === name ? "true" : false };
  return h(there ? "a" : "div", { class: `box ${role}`, title: name, ...link },
    h("h3", { class: role }, title),
    there ? await smaller(app, name) : note("left out of this file"),
    h("span", { class: "shape" }, label));
}

/** A thumbnail of a tensor. @param {App} app @param {string} name */
async function smaller(app, name) {
  const small = pooled(await sample(app.trace, name), POOLED);
  return thumbnail(small, "signed", largest(small.data) || 1);
}

/** A tensor's first matrix or, of a large one, evenly spaced rows. @param {import("./trace.js").Trace} trace @param {string} name */
async function sample(trace, name) {
  const [rows, columns] = (trace.shapes.get(name) ?? [1, 1]).slice(-2);
  if (!(rows * columns > COMPLETE && rows > POOLED)) return trace.matrix(name);
  const starts = Array.from({ length: POOLED }, (_, i) => Math.floor((i * rows) / POOLED));
  const parts = await Promise.all(starts.map((at) => trace.matrix(name, 0, at, at + 1)));
  return { data: parts.flatMap((part) => [...part.data]), rows: parts.length, columns };
}

/** The numbers of a tensor, in a window. @param {App} app @param {string} name */
async function tensorView(app, name) {
  const { trace, state } = app;
  const shape = trace.shapes.get(name) ?? [];
  const count = shape.slice(0, -2).reduce((a, b) => a * b, 1);
  const [rows, columns] = shape.slice(-2);
  const size = seen(app);
  const [top, left] = clamped(app, state.at ?? [0, 0], [rows, columns]);
  const index = Math.min(state.part ?? 0, count - 1); // the head
  const [bottom, right] = [Math.min(top + size, rows), Math.min(left + size, columns)];
  const numbers = await trace.matrix(name, index, top, bottom);
  const [width, data] = [right - left, cut(numbers, left, right)];
  const part = {
    name: count > 1 ? `${name}[${index}]` : name, data, rows: bottom - top, columns: width, first: /** @type {[number, number]} */ ([top, left]),
    rowLabels: trace.manifest.tokens.slice(top, bottom).map((token) => token.display), scale: /** @type {const} */ ("signed"), most: largest(data) || 1,
    width: pixels((Math.min(app.width, 1000) - 90) / width, 12, 40), height: 20,
    onhover: (/** @type {[number, number] | null} */ cell) =>
      app.say(cell ? [["token", `${trace.manifest.tokens[cell[0]]?.display} (${cell[0]})`], ["feature", String(cell[1])],
        ["value", String(numbers.data[(cell[0] - top) * columns + cell[1]])]] : []),
  };
  const { base } = app;
  const comparable = base?.has(name) && String(base.shapes.get(name)) === String(shape);
  const compared = state.diff && base && comparable ? sideBySide(app, { ...part, data: cut(await base.matrix(name, index, top, bottom), left, right) }, part, baseNames(app)) : null;
  const by = size / 2;
  const move = (/** @type {number} */ down, /** @type {number} */ along) => app.go({ at: clamped(app, [top + down, left + along], [rows, columns]) });
  return h("figure", { class: "focus" },
    h("div", { class: "scroll" }, compared ?? matrix(part).element),
    h("figcaption", {}, compared ? null : legend("signed", part.most, false), h("code", {}, part.name),
      note(`tokens ${top} to ${bottom - 1} of ${rows}, features ${left} to ${right - 1} of ${columns}`)),
    h("div", { class: "row" },
      rows > size && [button("▲", () => move(-by, 0), { "aria-label": "rows before" }), button("▼", () => move(by, 0), { "aria-label": "rows after" })],
      columns > size && [button("◀", () => move(0, -by), { "aria-label": "features before" }), button("▶", () => move(0, by), { "aria-label": "features after" })],
      count > 1 && picker("head", Array.from({ length: count }, (_, i) => `Head ${i}`), index, (to) => app.go({ part: to })),
      comparable ? button("side by side", () => app.go({ diff: !state.diff }), { "aria-pressed": String(state.diff) }) : null,
      button("numbers", () => app.go({ table: !state.table }), { "aria-pressed": String(state.table) }),
      button("close", () => app.go({ tensor: null, part: null, at: null }))),
    state.table ? h("div", { class: "scroll" }, table(part)) : null);
}

/** @param {number} count @param {string} word */
function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}
