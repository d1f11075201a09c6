// "Why this weight?" in a cell: its score as the sum of parts, each of which can be deleted.

import { button, h } from "./dom.js";
import { short } from "./numbers.js";
import { note } from "./panel.js";
import { dot, obstacle, predicted, sideOf, weightOf } from "./reasons.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./reasons.js").Side} Side */
/** @typedef {{name: string, letter: string, side: Side, gone: Set<string>, rows: Row[]}} Shown  a side on the page */
/** @typedef {import("./reasons.js").Part & {adds: number, measured: number}} Row  measured: what the score loses with the norms recomputed */

const SHOWN = 10; // parts of each side; the others are added

/**
 * The section. row: the steps of the query's row.
 * @param {App} app @param {Head} head @param {number} query @param {number} key @param {Record<string, ArrayLike<number>>} row
 */
export async function splitView(app, head, query, key, row) {
  const title = h("h3", {}, "Why this weight?");
  const problem = obstacle(head);
  if (problem) return h("section", {}, title, note(problem));
  const [queries, keys] = await Promise.all([sideOf(head, "queries", query), sideOf(head, "keys", key)]);
  const score = row.scores[key];
  const deleted = (app.state.deleted ?? "").split(",").filter(Boolean);
  const of = (/** @type {string} */ letter) => new Set(deleted.filter((one) => one.startsWith(`${letter}:`)).map((one) => one.slice(2)));
  const sides = [
    { name: "query", letter: "q", side: queries, gone: of("q"), rows: rowsOf(queries, keys.complete) },
    { name: "key", letter: "k", side: keys, gone: of("k"), rows: rowsOf(keys, queries.complete) },
  ];
  const farthest = sides.flatMap(({ name, rows }) => rows.map((part) => ({ ...part, side: name })))
    .reduce((one, other) => (Math.abs(other.measured - other.adds) > Math.abs(one.measured - one.adds) ? other : one));
  return h("section", { class: "split" }, title,
    h("p", {}, `The stream of a token is the sum of ${queries.parts.some(({ id }) => id === "position") ? "the token, its position" : "the token"} and what every earlier head and MLP wrote into it, so the score is a sum of as many parts, on the query's side and on the key's side (Elhage et al. 2021). Each part is divided by the same numbers as the complete vector: the norms are frozen.`),
    h("p", {}, "Adds: how much of this score comes from the part, as the model computed it. Without the part, the score should fall by as much (predicted). Measured: how much it falls if the part is taken away and the norms are computed again for what is left. Both are true: the first explains this score, the second says what would happen."),
    await outcome(app, head, row, key, sides),
    h("p", { class: "apart", "data-value": farthest.measured - farthest.adds },
      "How far apart can they be? Of all single parts of this score, predicted and measured differ most by ", h("strong", {}, short(Math.abs(farthest.measured - farthest.adds))),
      ` (without ${farthest.name} on the ${farthest.side}'s side: predicted, the score ${fall(farthest.adds)}; measured, it ${fall(farthest.measured)}). The reason: a norm divides by the size of what is left. Without a part this size is another one, so what the other parts add changes too.`),
    h("div", { class: "sides" }, sides.map((one) => h("div", { class: "scroll" }, column(app, score, one, deleted, key)))));
}

/** @param {number} loss */
function fall(loss) {
  return `${loss < 0 ? "rises" : "falls"} by ${short(Math.abs(loss))}`;
}

/** The parts of a side, largest first. @param {Side} side @param {ArrayLike<number>} other  the complete vector of the other side @returns {Row[]} */
function rowsOf(side, other) {
  const now = dot(side.complete, other);
  return side.parts.map((part) => ({
    ...part, adds: dot(/** @type {Float64Array} */ (side.vectors.get(part.id)), other), measured: now - dot(side.remaining(new Set([part.id])), other),
  })).sort((one, another) => Math.abs(another.adds) - Math.abs(one.adds));
}

/**
 * The score and the weight with all parts, and without the deleted ones as predicted and as measured.
 * @param {App} app @param {Head} head @param {Record<string, ArrayLike<number>>} row @param {number} key
 * @param {Shown[]} sides
 */
async function outcome(app, head, row, key, sides) {
  const all = await head.read("keys");
  const scores = (/** @type {ArrayLike<number>[]} */ [query, own]) =>
    Float64Array.from({ length: all.rows }, (_, j) => dot(query, j === key ? own : all.data.subarray(j * all.columns, (j + 1) * all.columns)));
  const chosen = sides.map(({ rows, gone }) => rows.filter(({ id }) => gone.has(id)));
  const any = chosen.some((parts) => parts.length);
  const changed = any ? [
    scores(sides.map(({ side, gone }) => predicted(side, gone))),
    scores(sides.map(({ side, gone }, i) => (chosen[i].length ? side.remaining(gone) : side.complete))),
  ] : [];
  const lines = [{ name: "score", now: row.scores[key], then: changed.map((one) => one[key]) }];
  const { facts } = head;
  const logits = row.masked ?? row.capped ?? row.scaled;
  if (facts?.recomputable) lines.push({ name: "weight", now: row.weights[key], then: changed.map((one) => weightOf(facts, row.scores, logits, one, key)) });
  const names = sides.map(({ name }, i) => chosen[i].length && `${chosen[i].map((part) => part.name).join("; ")} (${name}'s side)`).filter(Boolean);
  const number = (/** @type {number | null} */ x) => h("td", { "data-value": x }, x == null ? "–" : short(x));
  return h("div", { class: "outcome" },
    h("table", { class: "without" },
      h("thead", {}, h("tr", {}, ["", "with all parts", "predicted, norms frozen", "measured, norms recomputed"].map((text) => h("th", {}, text)))),
      h("tbody", {}, lines.map(({ name, now, then: [before, after] }) =>
        h("tr", { "data-line": name }, h("th", { scope: "row" }, name), number(now), number(before ?? null), number(after ?? null))))),
    h("p", { class: "note" }, any ? ["Without ", names.join(" and "), ". The other sections of this page show the score with all parts. ", button("restore all", () => app.go({ deleted: null }))] : "No part is deleted.",
      !facts?.recomputable && " The weight is not computed again, because this attention is edited or does not use the softmax."));
}

/**
 * The parts of one side as signed bars: the largest, the sum of the others, and those on demand.
 * @param {App} app @param {number} score @param {Shown} shown @param {string[]} deleted @param {number} key
 */
function column(app, score, { name, letter, side, gone, rows }, deleted, key) {
  const most = Math.abs(rows[0].adds) || 1;
  const sum = rows.reduce((total, { adds }) => total + adds, 0);
  const line = (/** @type {Row} */ part) => {
    const id = `${letter}:${part.id}`;
    const toggle = () => app.go({ deleted: (gone.has(part.id) ? deleted.filter((one) => one !== id) : [...deleted, id]).join(",") || null });
    const link = part.earlier && app.address({ ...part.earlier, cell: [side.token, key], deleted: null });
    return h("tr", { "data-part": id, class: gone.has(part.id) && "gone" },
      h("th", { scope: "row" }, link ? h("a", { href: link }, part.name) : part.name),
      ...numbers(part.adds, part.measured),
      h("td", {}, button(gone.has(part.id) ? "restore" : "delete", toggle, { "aria-label": `delete ${part.name} on the ${name}'s side`, "aria-pressed": String(gone.has(part.id)) })));
  };
  const numbers = (/** @type {number} */ adds, /** @type {number | null} */ measured) => {
    const width = 50 * Math.min(1, Math.abs(adds) / most);
    return [
      h("td", {}, h("span", { class: "track signed" }, h("span", { class: "fill", style: { background: `var(--${side.role})`, width: `${width}%`, "margin-left": `${adds < 0 ? 50 - width : 50}%` } }))),
      ...[adds, measured, measured == null ? null : measured - adds].map((x) => h("td", { "data-value": x }, x == null ? "" : short(x))),
    ];
  };
  const rest = rows.slice(SHOWN);
  const others = h("tbody", { hidden: !rest.some(({ id }) => gone.has(id)) }, rest.map(line));
  return h("table", { class: "parts", "data-side": letter, "data-sum": sum },
    h("caption", {}, h("span", { class: side.role }, `The ${name}'s side`), note(`The ${rows.length} parts add up to ${short(sum)}; the score is ${short(score)}. Rounding error of the model: ${short(sum - score)}.`)),
    h("thead", {}, h("tr", {}, ["part", "", "adds", "measured fall", "difference", ""].map((text) => h("th", {}, text)))),
    h("tbody", {}, rows.slice(0, SHOWN).map(line),
      rest.length > 0 && h("tr", { "data-part": `${letter}:others` }, h("th", { scope: "row" }, `all others (${rest.length})`), ...numbers(rest.reduce((total, { adds }) => total + adds, 0), null),
        h("td", {}, button("list", () => { others.hidden = !others.hidden; }, { "aria-label": `list all others on the ${name}'s side` })))),
    others);
}
