// All heads of the model, sorted by what they do.

import { button, h } from "./dom.js";
import { headThumb } from "./head.js";
import { legend } from "./matrix.js";
import { MEASURES, counted, measured, shown } from "./measures.js";
import { edits, note, words } from "./panel.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./main.js").View} View */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {{head: Head, layer: number, index: number, label: string}} Entry */

const POSITION = "position";
const TEXT = {
  sentence: "Each picture is one head, with its attention weights on this text; the number says how much of its attention is where you chose. A head that finds an earlier occurrence of the current token and attends to what came next is an induction head (Olsson et al. 2022).",
  equation: "induction = mean of weights[i, j + 1],  j < i: last position with the token of i", rung: null,
};

/** @param {App} app @returns {Promise<View>} */
export async function headsView(app) {
  const { trace, state } = app;
  /** @type {Record<string, {title: string, what: string}>} */
  const choices = { ...MEASURES, [POSITION]: { title: "position in the model", what: "layer by layer" } };
  const sort = Object.keys(choices).find((name) => name === state.sort) ?? Object.keys(MEASURES)[0];
  const entries = trace.layers.flatMap((layer, i) => layer.heads.map((head, j) => ({
    head, layer: i, index: j, label: `${trace.manifest.inputs ? `${layer.title}, ` : ""}${i}.${head.label}`,
  }))).filter(({ head }) => trace.manifest.heads?.[head.attention]);
  const value = (/** @type {Entry} */ entry) => measured(entry.head, sort);
  if (sort !== POSITION) entries.sort((a, b) => (value(b) ?? -1) - (value(a) ?? -1)); // stable
  const most = sort === "entropy" ? Math.max(...entries.map((entry) => value(entry) ?? 0)) : 1;
  return {
    picture: [
      h("div", { class: "row choice", role: "group", "aria-label": "sort by" }, h("span", { class: "note" }, "sort by"),
        Object.entries(choices).map(([name, { title, what }]) =>
          h("a", { href: app.address({ sort: name }), title: what, "aria-current": name === sort ? "true" : false }, title)),
        button("numbers", () => app.go({ table: !state.table }), { "aria-pressed": String(state.table), title: "n" })),
      note(sort === POSITION ? "Under each picture: layer.head." : `Under each picture: layer.head, and the ${choices[sort].what}. The largest is first.`),
      state.table ? h("div", { class: "scroll" }, numbers(app, entries, sort)) : null,
      h("div", { class: "map" }, await Promise.all(entries.map((entry) => tile(app, entry, sort, most)))),
      legend("share", 1, true),
    ],
    panel: [
      words(app, TEXT),
      h("section", {}, h("h2", {}, "What this does not show"),
        h("p", {}, "Attention is not proof of use: a weight says what a head reads, not what the model does with it. The values may be small, and later layers may ignore them. To test a head, switch it off and look at the next token."),
        note(`These numbers are of this text only. ${counted(entries[0].head)}`)),
      edits(app),
    ],
  };
}

/** @param {App} app @param {Entry} entry */
function link(app, { layer, index }) {
  return app.address({ layer, head: index, step: "weights", view: null, sort: null });
}

/** @param {App} app @param {Entry} entry @param {string} sort @param {number} most */
async function tile(app, entry, sort, most) {
  const value = measured(entry.head, sort);
  return h("a", { class: "head", href: link(app, entry), title: `layer ${entry.layer}, head ${entry.head.label}` },
    await headThumb(entry.head),
    sort !== POSITION && h("span", { class: "track" }, h("span", { class: "fill weights", style: { width: `${(100 * (value ?? 0)) / (most || 1)}%` } })),
    h("span", {}, entry.label),
    sort !== POSITION && h("b", { "data-value": value ?? NaN }, shown(sort, value)));
}

/** All numbers of all heads. @param {App} app @param {Entry[]} entries @param {string} sort */
function numbers(app, entries, sort) {
  const column = (/** @type {string} */ name, /** @type {string} */ title) =>
    h("th", { scope: "col", "aria-sort": name !== sort ? "none" : name === POSITION ? "ascending" : "descending" }, h("a", { href: app.address({ sort: name }) }, title));
  const names = Object.keys(MEASURES);
  return h("table", { class: "numbers" },
    h("caption", {}, "mean attention weights, and entropy in nats"),
    h("thead", {}, h("tr", {}, column(POSITION, "head"), Object.entries(MEASURES).map(([name, { title }]) => column(name, title)))),
    h("tbody", {}, entries.map((entry) => h("tr", {},
      h("th", { scope: "row" }, h("a", { href: link(app, entry) }, entry.label)),
      names.map((name) => h("td", { "data-value": measured(entry.head, name) ?? NaN }, shown(name, measured(entry.head, name))))))));
}
