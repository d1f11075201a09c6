// Level 4, a cell: how one weight of one head is computed.

import { h, s } from "./dom.js";
import { bracket, exact, percent, pixels, short } from "./numbers.js";
import { largest } from "./colours.js";
import { matrix, table } from "./matrix.js";
import { edits, note, picker, words } from "./panel.js";
import { ofStep } from "./words.js";
import { splitView } from "./split.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */

const SHOWN = 16; // keys in the pictures of a row
const TERMS = 3; // shown terms of a sum

/** @param {App} app @param {Head} head */
export async function cellView(app, head) {
  const [rows, columns] = head.size;
  const [asked, key] = app.state.cell ?? [0, 0];
  const query = Math.min(asked, rows - 1);
  const chosen = Math.min(Math.max(key, 0), columns - 1);
  const [queryTokens, keyTokens] = app.trace.tokens(head.attention).map((tokens) => tokens.map((token) => token.display));
  const pair = `[${queryTokens[query]}, ${keyTokens[chosen]}]`;

  /** @type {Record<string, ArrayLike<number>>} */
  const row = {};
  if (!head.steps.includes("weights")) throw new Error(`${head.name("weights")} was not recorded`);
  for (const step of head.steps) row[step] = (await head.rows(step, query, query + 1)).data;
  const q = head.operand("queries") && (await head.read("queries", query, query + 1)).data;
  const k = head.operand("keys") && (await head.read("keys", chosen, chosen + 1)).data;
  const values = head.operand("values") && (await head.read("values"));
  const additive = head.facts?.additive;
  const v = additive ? (await app.trace.matrix(additive)).data : null;

  const may = (/** @type {number} */ j) => (row.masked ? row.masked[j] !== -Infinity : head.allowed(query, j));
  const seen = Array.from({ length: columns }, (_, j) => j).filter(may);
  const strongest = [...seen].sort((a, b) => row.weights[b] - row.weights[a]).slice(0, SHOWN);
  if (may(chosen) && !strongest.includes(chosen)) strongest.push(chosen);
  strongest.sort((a, b) => a - b);
  const changed = (/** @type {string} */ step) => head.edits(step).length > 0;

  const hasScore = q && k && row.scores && head.rung !== "fixed";
  const parts = [
    hasScore && (v
      ? ["The score: v · tanh(query + key)", product(q.map((x, c) => Math.tanh(x + k[c])), v, row.scores[chosen], pair, ["tanh", "v"], "tanh(query + key) times v")]
      : ["The score: query · key", product(q, k, row.scores[chosen], pair, ["query", "key"], "query times key")]),
    (row.scaled || row.masked) && ["Scaled, masked", h("p", { class: "sum" }, scaled(head, row, chosen, may(chosen), changed))],
    row.weights && [head.rung === "fixed" ? "Divided by the sum of the row" : "The softmax of its row",
      shares(head, row, seen, strongest, chosen, keyTokens, pair, changed("weights"))],
    values && row.context && ["The weighted sum of the values", changed("context")
      ? h("p", { class: "sum" }, "The context of this head is 0, because you switched it off.")
      : mixed(app, row, values, strongest, seen.length, keyTokens, queryTokens[query])],
  ].filter((part) => Array.isArray(part));
  const sections = parts.map(([title, content], i) => h("section", {}, h("h3", {}, `${i + 1}. ${title}`), content));
  if (hasScore) sections.splice(1, 0, await splitView(app, head, query, chosen, row));
  return {
    picture: sections,
    panel: [
      words(app, { ...ofStep("weights", head), sentence: `The weight of ${keyTokens[chosen]} for ${queryTokens[query]}, from the dot product to the context.` }),
      h("section", { class: "controls" },
        h("h2", {}, "Another cell"),
        h("label", {}, "query ", picker("query", queryTokens.map(numbered), query, (at) => app.go({ cell: [at, chosen] }))),
        h("label", {}, "key ", picker("key", keyTokens.map(numbered), chosen, (at) => app.go({ cell: [query, at] }))),
        h("dl", { class: "exact" }, Object.entries(row).filter(([step]) => step !== "context").map(([step, numbers]) =>
          [h("dt", {}, step), h("dd", { "data-step": step, "data-value": numbers[chosen] }, exact(numbers[chosen]))]))),
      edits(app, [head]),
    ],
  };
}

/** @param {string} token @param {number} i */
function numbered(token, i) {
  return `${i} ${token}`;
}

/**
 * Two strips of bars and their products. @param {ArrayLike<number>} q @param {ArrayLike<number>} k
 * @param {number} total @param {string} pair @param {[string, string]} names @param {string} label
 */
function product(q, k, total, pair, names, label) {
  const count = q.length;
  const products = Array.from({ length: count }, (_, c) => q[c] * k[c]);
  const order = products.map((_, c) => c).sort((a, b) => Math.abs(products[b]) - Math.abs(products[a]));
  const first = Array.from({ length: Math.min(TERMS, count) }, (_, c) => `${bracket(q[c])} × ${bracket(k[c])}`);
  const width = pixels(640 / count, 5, 40);
  const bars = (/** @type {ArrayLike<number>} */ numbers, /** @type {string} */ fill, /** @type {number} */ top) => {
    const most = largest(numbers) || 1;
    return Array.from({ length: count }, (_, c) => {
      const size = (22 * Math.abs(numbers[c])) / most;
      return s("rect", { x: 70 + c * width, y: numbers[c] >= 0 ? top + 24 - size : top + 24, width: width - 1, height: size, fill },
        s("title", {}, `feature ${c}: ${exact(numbers[c])}`));
    });
  };
  const line = (/** @type {number} */ top, /** @type {string} */ name) => [
    s("line", { x1: 70, x2: 70 + count * width, y1: top + 24, y2: top + 24, stroke: "currentColor", "stroke-opacity": 0.3 }),
    s("text", { x: 62, y: top + 28, "text-anchor": "end", "font-size": 12, fill: "currentColor" }, name),
  ];
  return [
    h("p", { class: "sum" }, `score${pair} = ${first.join(" + ")}${count > TERMS ? " + …" : ""} = `,
      h("strong", { "data-sum": products.reduce((a, b) => a + b, 0), "data-value": total }, short(total))),
    h("div", { class: "scroll" }, s("svg", { class: "matrix", width: 76 + count * width, height: 160, role: "img", "aria-label": `${label}, ${count} features`, "font-family": "system-ui, sans-serif" },
      line(0, names[0]), bars(q, "var(--queries)", 0), line(52, names[1]), bars(k, "var(--keys)", 52), line(104, "product"),
      bars(products, "var(--ink)", 104))),
    note(`${count} products; the largest in size: ${order.slice(0, 3).map((c) => `feature ${c}: ${short(products[c])}`).join(", ")}.`),
  ];
}

/**
 * @param {Head} head @param {Record<string, ArrayLike<number>>} row @param {number} key @param {boolean} may
 * @param {(step: string) => boolean} changed
 */
function scaled(head, row, key, may, changed) {
  const parts = [];
  const { scale = 1, softcap } = head.facts ?? {};
  const root = Math.abs(1 / scale ** 2 - Math.round(1 / scale ** 2)) < 1e-6;
  const by = scale === 1 ? "× 1" : root ? `/ √${Math.round(1 / scale ** 2)}` : `× ${short(scale)}`;
  if (row.scaled && changed("scaled")) parts.push(`not scaled, by your edit: ${short(row.scaled[key])}`);
  else if (row.scaled) parts.push(head.facts ? `${short(row.scores[key])} ${by} = ${short(row.scaled[key])}` : `scaled: ${short(row.scaled[key])}`);
  if (row.capped && softcap != null) parts.push(`${short(softcap)} tanh(${short(row.scaled[key])} / ${short(softcap)}) = ${short(row.capped[key])}`);
  if (row.masked && changed("masked")) parts.push("not masked, by your edit");
  else if (row.masked) parts.push(may ? "this query may attend to this key" : "−∞: this query may not attend to this key");
  return parts.join(";  ");
}

/**
 * @param {Head} head @param {Record<string, ArrayLike<number>>} row @param {number[]} seen @param {number[]} strongest
 * @param {number} key @param {string[]} tokens @param {string} pair @param {boolean} replaced
 */
function shares(head, row, seen, strongest, key, tokens, pair, replaced) {
  const logits = row.masked ?? row.capped ?? row.scaled ?? row.scores;
  const plain = head.rung === "fixed";
  const softmax = !replaced && logits && (plain || !head.facts || head.facts.normalizer === "softmax");
  const most = softmax ? Math.max(...seen.map((j) => logits[j])) : 0;
  const raised = (/** @type {number} */ j) => (plain ? logits[j] : Math.exp(logits[j] - most));
  const total = softmax ? seen.reduce((sum, j) => sum + raised(j), 0) : 0;
  const exp = (/** @type {number} */ j) => (plain ? short(logits[j]) : `exp(${short(logits[j])} − ${bracket(most)}) / ${short(total)} = ${short(raised(j))}`);
  const how = !seen.includes(key) ? "" : softmax ? `${exp(key)} / ${short(total)} = ` : replaced ? "replaced by your edit: " : "";
  const label = seen.length > strongest.length ? `The strongest of ${seen.length} keys` : "All keys that it may attend to";
  return [
    h("p", { class: "sum" }, `weight${pair} = ${how}`, h("strong", { "data-value": row.weights[key] }, short(row.weights[key]))),
    h("div", { class: "bars" }, strongest.map((j) =>
      h("div", { class: "bar", "aria-current": j === key ? "true" : false },
        h("span", { class: "token", "data-token": j }, tokens[j]),
        h("span", { class: "track" }, h("span", { class: "fill weights", style: { width: `${100 * row.weights[j]}%` } })),
        h("span", { class: "number" }, `${softmax ? `${short(raised(j))} → ` : ""}${percent(row.weights[j])}`)))),
    note(softmax ? `${label}: its ${plain ? "number" : "exp(score − largest)"}, all of them together ${short(total)}, and its share.` : `${label}, and its weight.`),
  ];
}

/**
 * @param {App} app @param {Record<string, ArrayLike<number>>} row
 * @param {{data: ArrayLike<number>, rows: number, columns: number}} values @param {number[]} strongest
 * @param {number} seen @param {string[]} tokens @param {string} query
 */
function mixed(app, row, values, strongest, seen, tokens, query) {
  const width = values.columns;
  const data = new Float64Array((strongest.length + 1) * width);
  strongest.forEach((j, i) => {
    for (let c = 0; c < width; c++) data[i * width + c] = row.weights[j] * values.data[j * width + c];
  });
  for (let c = 0; c < width; c++) data[strongest.length * width + c] = row.context[c];
  const cell = pixels((Math.min(app.width, 900) - 90) / width, 6, 40);
  const part = {
    name: "weight × value of each key; the last row: the context", data, rows: strongest.length + 1, columns: width,
    first: /** @type {[number, number]} */ ([0, 0]), rowLabels: [...strongest.map((j) => tokens[j]), "context"],
    scale: /** @type {const} */ ("signed"), most: largest(data) || 1, width: cell, height: 20,
  };
  const left = seen > strongest.length ? ", the strongest only" : "";
  return [
    h("p", { class: "sum" }, `context[${query}] = ${strongest.slice(0, TERMS).map((j) => `${short(row.weights[j])} × value(${tokens[j]})`).join(" + ")}${strongest.length > TERMS ? " + …" : ""}`),
    h("div", { class: "scroll" }, matrix(part).element),
    note(`Each row is a weight times a value${left}; the last row is their sum over all keys, the context.`),
    app.state.table ? h("div", { class: "scroll" }, table(part)) : null,
  ];
}
