// What changes in a head on this text without one of its steps, computed from the trace.

import { percent, short } from "./numbers.js";
import { turned } from "./rotary.js";

/** @typedef {import("./attention.js").Head} Head */
/** @typedef {{data: ArrayLike<number>, rows: number, columns: number}} Matrix */
/** @typedef {[string, string, string]} Row  what is measured, with the step, and without it */

const LAST = 64; // rows: the last queries of a long text

/** How to compute the weights without a step. @type {Record<string, (head: Head, rows: (step: string) => Promise<Matrix>) => Promise<Matrix>>} */
const WEIGHTS = {
  scaled: async (head, rows) => softmax(await biased(head, rows, await rows("scores")), await allowedIn(head, rows)),
  capped: async (head, rows) => softmax(await biased(head, rows, await rows("scaled")), await allowedIn(head, rows)),
  masked: async (head, rows) => softmax(await biased(head, rows, await rows(before(head))), () => true),
  rotary: async (head, rows) => scored(head, rows, await rows("unrotated_queries"), await head.read("unrotated_keys")),
  norm: async (head, rows) => {
    const [queries, keys] = [await rows("unnormalized_queries"), await head.read("unnormalized_keys")];
    if (!head.chain("queries").includes("unrotated_queries")) return scored(head, rows, queries, keys);
    return scored(head, rows, turned(queries, await rows("unrotated_queries"), await rows("queries")),
      turned(keys, await head.read("unrotated_keys"), await head.read("keys")));
  },
};

/**
 * The consequences for the last queries of the text; null where nothing is computed.
 * @param {Head} head  of the unchanged model @param {string} section  a name of why.md @param {string[][]} tokens  of the queries and of the keys @returns {Promise<Row[] | null>}
 */
export async function without(head, section, [queries, keys]) {
  const first = Math.max(0, head.size[0] - LAST);
  const position = first + head.offset; // of the first row among the keys
  const rows = (/** @type {string} */ step) => head.rows(step, first);
  if (section === "output") {
    const matrix = await head.learned("W_output");
    return matrix && [["features of the stream that this head can change", `${matrix.columns}`, `${matrix.rows} of ${matrix.columns}`]];
  }
  if (section === "heads") {
    const output = head.name("output");
    if (!(await head.learned("W_output")) || !head.trace.has(output)) return null;
    const last = head.size[0] - 1;
    const [all, one] = [await head.trace.matrix(output, 0, last), await head.rows("output", last)];
    return [[`length of the update of the last token, ${queries[last]}`, short(Math.hypot(...all.data)), short(Math.hypot(...one.data))]];
  }
  if (!head.steps.includes("weights")) return null;
  const weights = await rows("weights");
  if (section === "weights" && head.steps.includes("scaled")) {
    const scores = await rows("scaled");
    const may = await allowedIn(head, rows);
    const sums = Array.from({ length: scores.rows }, (_, i) => sum(scores.columns, (j) => (may(i, j) ? scores.data[i * scores.columns + j] : 0)));
    const negative = sum(scores.data.length, (at) => (may(Math.floor(at / scores.columns), at % scores.columns) && scores.data[at] < 0 ? 1 : 0));
    return [["sum of a row", "1", `${short(Math.min(...sums))} to ${short(Math.max(...sums))}`], ["negative weights", "0", String(negative)]];
  }
  const steps = { scaled: "scores", capped: "scaled", masked: "scaled", rotary: "unrotated_queries", norm: "unnormalized_queries" };
  const needed = steps[/** @type {keyof typeof steps} */ (section)];
  if (!needed || !(head.steps.includes(needed) || head.trace.has(head.name(needed)))) return null;
  const changed = await WEIGHTS[section](head, rows);
  const both = (/** @type {string} */ name, /** @type {(weights: Matrix) => string} */ measure) => /** @type {Row} */ ([name, measure(weights), measure(changed)]);
  if (section === "masked") {
    const most = later(changed, position);
    const example = most.share > 0 && `${queries[first + most.row]} reads the later token ${keys[most.key]} with ${percent(most.share)}`;
    return [both("attention to later tokens", (w) => percent(later(w, position).mean)), ...(example ? [/** @type {Row} */ (["for example", "no later token", example])] : [])];
  }
  return [
    both("entropy of the weights (nats)", (w) => short(mean(w, (x) => (x > 0 ? -x * Math.log(x) : 0)))),
    both("gradient of the softmax, Σ w (1 − w)", (w) => short(mean(w, (x) => x * (1 - x)))),
    ...(section === "rotary" ? [both("attention to the previous token", (w) => percent(previous(w, position)))] : [both("largest weight of a query, mean", (w) => percent(largestOf(w)))]),
  ];
}

/** Which cells may have a weight: those that are not −∞ in the masked scores. @param {Head} head @param {(step: string) => Promise<Matrix>} rows */
async function allowedIn(head, rows) {
  const masked = head.steps.includes("masked") ? await rows("masked") : null;
  return (/** @type {number} */ i, /** @type {number} */ j) => !masked || masked.data[i * masked.columns + j] !== -Infinity;
}

/** The weights with other queries and keys. @param {Head} head @param {(step: string) => Promise<Matrix>} rows @param {Matrix} queries @param {Matrix} keys */
async function scored(head, rows, queries, keys) {
  const scale = head.facts?.scale ?? 1;
  const data = new Float64Array(queries.rows * keys.rows);
  for (let i = 0; i < queries.rows; i++) {
    for (let j = 0; j < keys.rows; j++) {
      data[i * keys.rows + j] = scale * sum(keys.columns, (c) => queries.data[i * keys.columns + c] * keys.data[j * keys.columns + c]);
    }
  }
  return softmax(await biased(head, rows, { data, rows: queries.rows, columns: keys.rows }), await allowedIn(head, rows));
}

/** The step before the mask and the bias. @param {Head} head */
function before(head) {
  return head.steps.includes("capped") ? "capped" : "scaled";
}

/** Scores with the bias of each allowed cell, such as that of ALiBi. @param {Head} head @param {(step: string) => Promise<Matrix>} rows @param {Matrix} scores */
async function biased(head, rows, scores) {
  if (!head.facts?.bias) return scores;
  const [masked, plain] = [await rows("masked"), await rows(before(head))];
  const data = Float64Array.from(scores.data, (x, at) => (masked.data[at] === -Infinity ? x : x + masked.data[at] - plain.data[at]));
  return { ...scores, data };
}

/** @param {Matrix} scores @param {(row: number, column: number) => boolean} may @returns {Matrix} */
function softmax({ data, rows, columns }, may) {
  const weights = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    let most = -Infinity;
    for (let j = 0; j < columns; j++) if (may(i, j)) most = Math.max(most, data[i * columns + j]);
    if (most === -Infinity) continue;
    for (let j = 0; j < columns; j++) if (may(i, j)) weights[i * columns + j] = Math.exp(data[i * columns + j] - most);
    const total = sum(columns, (j) => weights[i * columns + j]);
    for (let j = 0; j < columns; j++) weights[i * columns + j] /= total;
  }
  return { data: weights, rows, columns };
}

/** The share of attention on later tokens, and the largest such weight. @param {Matrix} weights @param {number} position  of the first row */
function later({ data, rows, columns }, position) {
  let [mean, share, row, key] = [0, 0, 0, 0];
  for (let i = 0; i < rows; i++) {
    for (let j = Math.max(0, position + i + 1); j < columns; j++) {
      mean += data[i * columns + j] / rows;
      if (data[i * columns + j] > share) [share, row, key] = [data[i * columns + j], i, j];
    }
  }
  return { mean, share, row, key };
}

/** The mean weight of the previous token, for all queries that have one. @param {Matrix} weights @param {number} position  of the first row */
function previous({ data, rows, columns }, position) {
  const from = Math.max(0, 1 - position);
  return rows > from ? sum(rows - from, (i) => data[(i + from) * columns + position + i + from - 1]) / (rows - from) : 0;
}

/** The mean over the rows of the largest weight. @param {Matrix} weights */
function largestOf({ data, rows, columns }) {
  let total = 0;
  for (let i = 0; i < rows; i++) {
    let most = 0;
    for (let j = 0; j < columns; j++) most = Math.max(most, data[i * columns + j]);
    total += most / rows;
  }
  return total;
}

/** The mean over the rows of the sum of a function of the weights. @param {Matrix} weights @param {(weight: number) => number} of */
function mean({ data, rows }, of) {
  return sum(data.length, (at) => of(data[at])) / rows;
}

/** @param {number} count @param {(at: number) => number} term */
function sum(count, term) {
  let total = 0;
  for (let at = 0; at < count; at++) total += term(at);
  return total;
}
