// The ladder: one sentence through all rungs, and what each idea changes.

import { button, h } from "./dom.js";
import { largest } from "./colours.js";
import { pixels } from "./numbers.js";
import { legend, matrix } from "./matrix.js";
import { note, words } from "./panel.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./trace.js").Layer} Layer */

const ROOM = 116; // maximum pixels of a matrix
const CHIPS = ["queries", "keys", "values", "scores", "scaled", "masked", "weights", "dropped", "context", "output"];

/** @param {App} app */
export async function ladderView(app) {
  const { trace, state } = app;
  const ladder = /** @type {NonNullable<import("./trace.js").Manifest["ladder"]>} */ (trace.manifest.ladder);
  const tokens = ladder.tokens.map((token) => token.display);
  const columns = await Promise.all(trace.rungs.map((rung, i) => column(app, rung, trace.rungs[i - 1] ?? null, i, tokens)));
  const open = ladder.rungs.find((rung) => rung.name === state.rung);
  return {
    cells: true,
    wide: true,
    picture: [
      h("div", { class: "row" }, button("what changed", () => app.go({ diff: !state.diff }), { "aria-pressed": String(state.diff) }),
        state.diff ? note("Difference from the previous rung: white where nothing changed.") : note("Outlined: new on this rung.")),
      h("div", { class: "ladder" }, columns),
      h("div", { class: "row" }, note("weights:"), legend(state.diff ? "signed" : "share", 1, !state.diff), note("result:"), legend("signed", 1, false)),
    ],
    panel: [
      words(app, open
        ? { sentence: `${open.idea[0].toUpperCase()}${open.idea.slice(1)}.`, equation: open.equation, rung: null }
        : { sentence: "Each rung is the previous one plus one idea. Click a rung to see its equation, or a matrix to see its steps.", equation: "weights → context", rung: null }),
      open && note(open.source),
      open && h("p", {}, h("code", {}, `python -m headway.ladder.${open.name}`)),
      note(`“${ladder.text}”: three numbers per word, for the book's sentence those of the book. The parameters are those of the book (seed 123).`),
    ],
  };
}

/** @param {App} app @param {Layer} rung @param {Layer | null} before @param {number} i @param {string[]} tokens */
async function column(app, rung, before, i, tokens) {
  const { state, trace } = app;
  const facts = trace.manifest.ladder?.rungs[i];
  const names = chipsOf(rung);
  const old = before ? chipsOf(before) : new Set();
  const gone = [...old].filter((name) => !names.has(name));
  const matrices = await Promise.all(rung.heads.map(async (head, j) => {
    const last = before && before.heads[Math.min(j, before.heads.length - 1)];
    const added = before && j >= before.heads.length;
    const drawn = await small(head, state.diff ? last : null, tokens, app.say);
    return h("a", { class: `rung-head${added ? " new" : ""}`, href: app.address({ rung: rung.title, head: j, step: null, cell: null }), title: `${rung.title}, head ${j}: its steps` }, drawn);
  }));
  const result = await context(app, rung, state.diff ? before : null);
  return h("section", { class: "rung", "aria-current": state.rung === rung.title ? "true" : false },
    h("h3", {}, h("a", { href: app.address({ rung: rung.title, head: null }) }, `${i + 1} ${rung.title}`)),
    h("p", { class: "idea" }, facts?.idea),
    h("ul", { class: "chips" },
      [...names].map((name) => h("li", { class: `${name.replace(/^.* /, "")}${old.has(name) ? "" : " new"}` }, name)),
      gone.map((name) => h("li", { class: "gone" }, h("s", {}, name)))),
    h("div", { class: "rung-weights" }, h("h4", {}, trace.has(rung.heads[0].name("weights")) ? step(rung.heads[0]) : "recomputed"), matrices),
    h("div", {}, h("h4", {}, "result"), result));
}

/** The steps, parameters and heads of a rung. @param {Layer} rung @returns {Set<string>} */
function chipsOf(rung) {
  const { trace } = rung.heads[0];
  const has = (/** @type {Head} */ head, /** @type {string} */ name) =>
    trace.shapes.has(head.name(name)) || trace.shapes.has(`${rung.name}.${name}`);
  const facts = trace.manifest.ladder?.rungs.find((one) => one.name === rung.title);
  const chips = CHIPS.filter((name) => has(rung.heads[0], name)).map((name) =>
    name === "scores" && rung.title === "fixed" ? "scores by position" : name);
  const packed = facts?.parameters.includes("W_qkv") ? ["W_qkv"] : [];
  return new Set([...packed, ...chips, ...(rung.heads.length > 1 ? [`${rung.heads.length} heads`] : [])]);
}

/** The step that is drawn. @param {Head} head */
function step(head) {
  return head.steps.includes("dropped") ? "dropped" : "weights";
}

/** @param {Head} head @param {Head | null} before @param {string[]} tokens @param {(rows: [string, string][]) => void} say */
async function small(head, before, tokens, say) {
  const own = await head.rows(step(head));
  const other = before && (await before.rows(step(before)));
  const data = other ? Float64Array.from(own.data, (x, i) => x - other.data[i]) : own.data;
  const cell = pixels(ROOM / own.columns, 3, 22);
  return matrix({
    name: `${head.name(step(head))}[${head.index}]`, data, rows: own.rows, columns: own.columns, first: [0, 0],
    scale: other ? "signed" : "share", most: other ? 1 : Math.max(1, largest(data)), width: cell, height: cell,
    hatched: other ? undefined : (i, j) => !head.allowed(i, j),
    onhover: (at) => say(at ? [["query", tokens[at[0]]], ["key", tokens[at[1]]], [other ? "change" : step(head), String(data[at[0] * own.columns + at[1]])]] : []),
  }).element;
}

/** @param {App} app @param {Layer} rung @param {Layer | null} before */
async function context(app, rung, before) {
  const own = await app.trace.matrix(`${rung.name}.result`);
  const other = before && (await app.trace.matrix(`${before.name}.result`));
  const comparable = other && other.columns === own.columns;
  const data = comparable ? Float64Array.from(own.data, (x, i) => x - other.data[i]) : own.data;
  const cell = pixels(ROOM / own.rows, 3, 18);
  return [
    matrix({
      name: `${rung.name}.result`, data, rows: own.rows, columns: own.columns, first: [0, 0],
      scale: "signed", most: 1, width: Math.min(26, Math.floor(ROOM / own.columns)), height: cell,
    }).element,
    before && !comparable ? note("the widths differ, so they are not compared") : null,
  ];
}
