// The ladder: a strip of all rungs, and the intermediates of the selected rung with their numbers.

import { button, h } from "./dom.js";
import { largest } from "./colours.js";
import { equation } from "./math.js";
import { exact, pixels, short } from "./numbers.js";
import { legend, matrix, ramp, thumbnail } from "./matrix.js";
import { note } from "./panel.js";
import { whyText } from "./why.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./trace.js").Layer} Layer */
/** @typedef {import("./trace.js").Rung} Rung */
/** @typedef {import("./trace.js").Difference} Difference */
/** @typedef {{app: App, rung: Layer, facts: Rung, before: Layer | null, labels: string[]}} Ladder  the selected rung, the rung before it, the words */

const [LABEL, GAP] = [74, 14]; // pixels of the labels of rows, and between matrices
const NUMBERS = 8; // words: of a longer text, the matrices of queries by keys have no numbers
const PROJECTIONS = ["W_query", "W_key", "W_value", "W_qkv"];
const ROLES = ["queries", "keys", "values"];
const SQUARE = ["scores", "scaled", "masked", "weights", "dropped"]; // queries by keys
const STEPS = [...ROLES, ...SQUARE, "context"]; // of each head

/** The selected rung; by default the first. @param {App} app */
export function rungAt({ trace, state }) {
  return Math.max(0, trace.rungs.findIndex((rung) => rung.title === state.rung));
}

/** The address of a rung. @param {App} app @param {Layer} rung */
function address(app, rung) {
  return app.address({ ...app.top, ladder: true, rung: rung.title, diff: app.state.diff });
}

/** @param {App} app */
export async function ladderView(app) {
  const { trace, state } = app;
  const { rungs, tokens } = /** @type {NonNullable<import("./trace.js").Manifest["ladder"]>} */ (trace.manifest.ladder);
  const at = rungAt(app);
  const [rung, before, after] = [trace.rungs[at], trace.rungs[at - 1], trace.rungs[at + 1]];
  const gone = before ? [...PROJECTIONS, ...STEPS].filter((name) => place(before, name) && !place(rung, name)) : [];
  const diff = state.diff && before;
  return {
    cells: true,
    above: h("ol", { class: "rungs" }, await Promise.all(trace.rungs.map((one, i) => tile(app, one, i)))),
    picture: [
      h("div", { class: "row rung-row" },
        before && h("a", { href: address(app, before) }, `← ${before.title}`), after && h("a", { href: address(app, after) }, `${after.title} →`),
        before && button("what changed", () => app.go({ diff: !state.diff }), { "aria-pressed": String(state.diff) }),
        before && h("span", { class: "note" }, diff ? `Difference from ${before.title}. Outlined: new, with its own numbers.` : `Outlined: new since ${before.title}.`),
        gone.length > 0 && h("span", { class: "note gone" }, "No longer: ", h("s", {}, gone.join(", ")))),
      h("div", { class: "rung" }, await matrices({ app, rung, facts: rungs[at], before: before ?? null, labels: tokens.map((token) => token.display) })),
      h("div", { class: "row" }, legend("share", 1, true)),
      note("Other numbers: blue is negative, red positive, 0 has the color of the page. The scale of a matrix ends at ± its largest absolute value. Click the name of a step to open it."),
    ],
    panel: [
      explanation(rungs[at], at, before ? rungs[at - 1] : null),
      rungs[at].differs && (await equal(rung, rungs[at], rungs[at].differs)),
      h("section", {},
        note(`Source: ${rungs[at].source}.`),
        h("p", {}, h("code", {}, `python -m headway.ladder.${rung.title}`)),
        note(rungs[at].parameters.length
          ? "Parameters: those of the book, drawn with seed 123; a second head and W_output have further random numbers."
          : "This rung has no parameters."),
        note("x: three numbers per word, those of the book for the words of its sentence.")),
    ],
  };
}

/** A rung in the strip. @param {App} app @param {Layer} rung @param {number} i */
async function tile(app, rung, i) {
  const pictures = await Promise.all(rung.heads.map(async (head) => {
    const weights = await head.rows(head.steps.includes("dropped") ? "dropped" : "weights");
    return thumbnail(weights, "share", Math.max(1, largest(weights.data)), (row, key) => !head.allowed(row, key));
  }));
  return h("li", {}, h("a", { href: address(app, rung), "aria-current": i === rungAt(app) ? "true" : false },
    h("h3", {}, `${i + 1} ${rung.title}`), h("div", {}, pictures),
    h("p", { class: "idea" }, app.trace.manifest.ladder?.rungs[i].idea)));
}

/** @param {Rung} rung @param {number} at @param {Rung | null} before */
function explanation(rung, at, before) {
  return h("section", { class: "words" },
    h("h2", {}, `${at + 1}. ${rung.name}`),
    h("p", {}, `${rung.idea[0].toUpperCase()}${rung.idea.slice(1)}.`),
    equation(rung.equation),
    before && note(`Before, ${before.name}: ${before.idea}.`),
    h("div", { class: "why" }, whyText(rung.name)));
}

/** The rung with an equal result, and what differs. @param {Layer} rung @param {Rung} facts @param {Difference} differs */
async function equal({ name, heads }, facts, { equals, products, scores }) {
  const { trace } = heads[0];
  const [own, other] = [await trace.matrix(`${name}.result`), await trace.matrix(`ladder.${equals}.result`)];
  const most = largest(Float64Array.from(own.data, (x, i) => x - other.data[i]));
  return h("section", { class: "equal" },
    h("h3", {}, `The result equals that of ${equals}`),
    note(`By design; the largest difference is ${short(most)}. What differs:`),
    h("table", { class: "numbers" },
      h("thead", {}, h("tr", {}, [null, equals, facts.name].map((one) => h("th", { scope: "col" }, one)))),
      h("tbody", {}, Object.entries({ "matrix products": products, "numbers stored for scores": scores }).map(([title, numbers]) =>
        h("tr", {}, h("th", { scope: "row" }, title), [equals, facts.name].map((one) => h("td", {}, numbers[one])))))));
}

/** The online softmax of the last query after each block of keys. @param {string} query @param {import("./trace.js").Running[]} blocks */
function running(query, blocks) {
  return h("div", { class: "scroll" }, h("table", { class: "numbers" },
    h("caption", {}, `the query “${query}” after each block of keys`),
    h("thead", {}, h("tr", {}, ["keys", "maximum m", "sum l", "c", "c / l"].map((one) => h("th", { scope: "col" }, one)))),
    h("tbody", {}, blocks.map(({ keys, largest, total, context, result }) =>
      h("tr", {}, [[keys], [largest], [total], context, result].map((numbers) => h("td", {}, numbers.map(short).join("\u2003"))))))));
}

/**
 * Where a matrix of a rung is: the name of its tensor, and its index along the axes before the last
 * two. @param {Layer} rung @param {string} name @param {number} [j] the head @returns {[string, number] | null}
 */
function place(rung, name, j = 0) {
  const head = rung.heads[j];
  const own = name === "x" ? "inputs" : STEPS.includes(name) ? head.name(name)
    : `${rung.name}.${name.startsWith("W_") ? "parameters." : ""}${name}`;
  if (!head.trace.has(own)) return null;
  return [own, STEPS.includes(name) ? head.index : perHead(rung) && name.startsWith("W_") ? j : 0];
}

/** Whether each head has its own matrices. @param {Layer} rung */
function perHead(rung) {
  return rung.heads[0].trace.shapes.get(`${rung.name}.parameters.W_query`)?.length === 3;
}

/** The matrices in the order of computation. @param {Ladder} ladder */
async function matrices(ladder) {
  const { rung, before } = ladder;
  const there = (/** @type {string[]} */ names) => names.filter((name) => place(rung, name));
  const [parameters, projected, square] = [PROJECTIONS, ROLES, SQUARE].map(there);
  const alone = rung.heads.length === 1;
  const blocks = ladder.facts.differs?.running ?? [];
  const heads = await Promise.all(rung.heads.map(async (_, j) => {
    const content = [
      await shelf(ladder, alone ? ["x", ...parameters, ...projected] : [...(perHead(rung) ? parameters : []), ...projected], j),
      blocks[j] && running(ladder.labels.at(-1) ?? "", blocks[j]),
      await shelf(ladder, [...square, "context"], j),
    ];
    if (alone) return content;
    return [h("section", { class: `rung-head${before && j >= before.heads.length ? " new" : ""}` }, h("h3", {}, `head ${j}`), content.flat())];
  }));
  return [
    alone ? [] : await shelf(ladder, ["x", ...(perHead(rung) ? [] : parameters)]),
    ...heads.flat(),
    alone ? [] : await shelf(ladder, there(["W_output", "output"]).length ? ["W_output", "output"] : ["result"]),
  ].flat();
}

/** Matrices next to each other, in as many rows as needed; the first in a row has labels. @param {Ladder} ladder @param {string[]} names @param {number} [j] the head */
async function shelf(ladder, names, j = 0) {
  const { app, rung, labels } = ladder;
  const room = app.width < 640 ? app.width : app.width - 68; // the panel of the ladder is wider
  /** @type {Node[][]} */
  const rows = [];
  let left = 0;
  for (const name of names) {
    const at = /** @type {[string, number]} */ (place(rung, name, j));
    const keys = SQUARE.includes(name);
    const columns = app.trace.shapes.get(at[0])?.at(-1) ?? 1;
    const cell = keys ? square(app, labels.length) : 36;
    const width = Math.max(columns * cell + (keys ? 9 : 0), 88) + 6 + GAP;
    if (!rows.length || left < width - GAP) {
      rows.push([]);
      left = room - LABEL;
    }
    const row = /** @type {Node[]} */ (rows.at(-1));
    row.push(await figure(ladder, name, j, at, cell, row.length === 0));
    left -= width;
  }
  return rows.map((row) => h("div", { class: "shelf" }, row));
}

/** Pixels of a cell of queries by keys. @param {App} app @param {number} tokens */
function square(app, tokens) {
  return tokens <= NUMBERS ? 31 : pixels(Math.min(280, app.width - 110) / tokens, 6, 30);
}

/**
 * @param {Ladder} ladder @param {string} name @param {number} j the head @param {[string, number]} at
 * @param {number} width @param {boolean} labelled
 */
async function figure({ app, rung, before, labels }, name, j, at, width, labelled) {
  const { trace, state } = app;
  const head = rung.heads[j];
  const isNew = before && (!place(before, name) || (name === "scores" && before.title === "fixed") || (name === "result" && before.heads.length === 1));
  const own = await trace.matrix(...at);
  const earlier = state.diff && before && !isNew && j < before.heads.length && place(before, name, j);
  const old = earlier ? await trace.matrix(...earlier) : null;
  const changed = old && old.rows === own.rows && old.columns === own.columns ? Float64Array.from(own.data, (x, i) => rounded(x - old.data[i])) : null;
  const data = changed ?? own.data;
  const scale = !changed && (["weights", "dropped"].includes(name) || (name === "scores" && rung.title === "fixed")) ? "share" : "signed";
  const most = Math.max(scale === "share" ? 1 : 0, largest(data));
  const same = changed && !most;
  const [keys, tokens] = [SQUARE.includes(name), !name.startsWith("W_")];
  const masks = name === "masked" || (scale === "share" && name !== "scores");
  const title = name === "result" ? "context" : name;
  const drawn = matrix({
    name: `${at[0]}[${at[1]}]`, data, rows: own.rows, columns: own.columns, first: [0, 0],
    rowLabels: (labelled || state.diff) && tokens ? labels : null, columnLabels: keys ? labels : null,
    scale, most, width, height: Math.min(20, keys || tokens ? square(app, labels.length) : 20),
    hatched: masks ? (i, k) => !head.allowed(i, k) : undefined,
    onhover: (cell) => app.say(cell ? [
      [keys ? "query" : tokens ? "token" : "row", tokens ? labels[cell[0]] : String(cell[0])],
      keys ? ["key", labels[cell[1]]] : ["column", String(cell[1])],
      [changed ? `change of ${title}` : title, exact(data[cell[0] * own.columns + cell[1]])],
    ] : []),
  });
  const link = head.steps.includes(name) && app.address({ rung: rung.title, head: j, step: name, cell: null });
  const text = formula(rung, name);
  return h("figure", { class: `${keys ? "keys" : ""}${isNew ? " new" : ""}`, "data-step": name },
    h("h3", { class: title }, link ? h("a", { href: link }, title) : title, h("span", { class: "shape" }, ` ${own.rows}×${own.columns}`)),
    text && equation(text),
    same ? null : h("div", { class: "scroll" }, drawn.element),
    h("figcaption", { class: "legend" }, same ? "no change" : [ramp(scale, most, 8), h("span", {}, scale === "share" ? `0 to ${short(most)}` : `±${short(most)}`)],
      old && !changed && " other shape, not compared"));
}

/** A difference without what rounding made. @param {number} x */
function rounded(x) {
  return Math.abs(x) < 1e-12 ? 0 : x;
}

/** What a matrix is computed from. @param {Layer} rung @param {string} name */
function formula(rung, name) {
  const has = (/** @type {string} */ one) => place(rung, one) != null;
  const role = ROLES.indexOf(name);
  if (role >= 0) return has(PROJECTIONS[role]) ? `x ${PROJECTIONS[role]}` : "x W_qkv";
  const earlier = SQUARE.slice(0, name === "context" ? SQUARE.length : SQUARE.indexOf(name)).filter(has).at(-1);
  return {
    scores: rung.title === "fixed" ? "2^-|i - j|" : has("queries") ? "queries keys^T" : "x x^T",
    scaled: "scores / sqrt(d_k)",
    masked: "scaled if j <= i else -inf",
    weights: rung.title === "fixed" ? "scores / sum scores" : `softmax(${earlier})`,
    dropped: "weights / (1 - p) or 0",
    context: earlier ? `${earlier} ${has("values") ? "values" : "x"}` : "c / l",
    result: "concat(contexts)",
    output: "concat(contexts) W_output",
  }[name];
}
