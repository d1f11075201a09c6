// Why a score is what it is: the contributions of the token, its position and every earlier head and
// MLP, on the query's and on the key's side, in double precision. The split into paths is from Elhage
// et al. 2021 (A Mathematical Framework for Transformer Circuits).

import { times } from "./attention.js";
import { turned } from "./rotary.js";

/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./trace.js").Facts} Facts */
/** @typedef {import("./trace.js").Trace} Trace */
/** @typedef {{data: ArrayLike<number>, rows: number, columns: number}} Matrix */
/**
 * A part of the residual stream; earlier: the head that wrote it.
 * @typedef {{id: string, name: string, earlier: {layer: number, head: number} | null}} Part
 */
/**
 * The query or the key of a token as the sum of the parts of its stream.
 * vectors: what each part adds to the query or key, with the norms frozen. complete: the query or key
 * of the trace. remaining: the query or key without some parts, with the norms recomputed.
 * @typedef {{
 *   role: "queries" | "keys", token: number, parts: Part[], vectors: Map<string, Float64Array>,
 *   complete: ArrayLike<number>, remaining: (deleted: Set<string>) => ArrayLike<number>,
 * }} Side
 */

const KEPT = 16; // streams

/** Why the scores of a head cannot be split into parts; null if they can. @param {Head} head @returns {string | null} */
export function obstacle(head) {
  const { trace, inGPT, block } = head;
  const { kind, rung, model, edits = [], edit_kinds = [] } = trace.manifest;
  if (head.attention.startsWith("ladder.") || kind === "ladder") return "On the ladder the vectors of the words are given: they have no earlier parts.";
  if (!inGPT) return "Only scores of a GPT can be split into parts: this trace has no parameters of a GPT.";
  if (rung) return `The attention of this model is the rung ${rung} of the ladder; scores can be split into parts only in models with Headway's own attention module.`;
  if (model?.norm?.placement !== "before") return "This model normalizes the sum after every layer, as BERT does, so its stream is not a sum of parts.";
  if (edits.some(({ what }) => edit_kinds.find(({ name }) => name === what)?.shown.includes("output"))) return "An edit replaces the output of a layer, so the stream is not the sum of the outputs of the heads.";
  const earlier = trace.layers.slice(0, number(block)).flatMap(({ name }) => [`${name}.attention.W_output`, `${name}.mlp.output`]);
  const needed = ["embedded", `${block}.attention_norm.weight`, ...["queries", "keys", "W_query", "W_key"].map((name) => head.name(name)), ...earlier];
  return needed.every((name) => trace.has(name)) ? null : "The parameters and the residual stream are left out of this file, which would be too large with them.";
}

/** The number of a layer. @param {string} block */
function number(block) {
  return Number(block.split(".").at(-1));
}

/** One side of the scores of a head. @param {Head} head @param {"queries" | "keys"} role @param {number} token @returns {Promise<Side>} */
export async function sideOf(head, role, token) {
  const { parts, stream } = await streamOf(head, token);
  const project = await projection(head, role, token);
  const { data, columns } = project(stream, parts.map(({ id }) => id === "biases"));
  const total = summed(stream);
  return {
    role, token, parts,
    vectors: new Map(parts.map(({ id }, i) => [id, data.slice(i * columns, (i + 1) * columns)])),
    complete: (await head.read(role, token, token + 1)).data,
    remaining: (deleted) => {
      const rest = total.slice();
      parts.forEach(({ id }, i) => { if (deleted.has(id)) for (let c = 0; c < rest.length; c++) rest[c] -= stream.data[i * rest.length + c]; });
      return project({ data: rest, rows: 1, columns: rest.length }, [!deleted.has("biases")]).data;
    },
  };
}

/** @typedef {{parts: Part[], stream: Matrix}} Stream  the parts, one per row */
/** Streams that were read before, by layer and token. @type {WeakMap<Trace, Map<string, Promise<Stream>>>} */
const STREAMS = new WeakMap();

/** The parts of the residual stream of a token before a layer. @param {Head} head @param {number} token @returns {Promise<Stream>} */
function streamOf(head, token) {
  const known = STREAMS.get(head.trace) ?? new Map();
  if (known.size >= KEPT) known.clear();
  const key = `${head.block} ${token}`;
  const stream = known.get(key) ?? read(head, token);
  STREAMS.set(head.trace, known.set(key, stream));
  stream.catch(() => known.delete(key));
  return stream;
}

/** @param {Head} head @param {number} token @returns {Promise<Stream>} */
async function read(head, token) {
  const { trace, block } = head;
  const layers = trace.layers.slice(0, number(block));
  const row = async (/** @type {string} */ name) => (trace.has(name) ? (await trace.matrix(name, 0, token, token + 1)).data : []);
  const [embedded, position, written] = await Promise.all([row("embedded"), row("position"), Promise.all(layers.map(async ({ name, heads }, layer) => {
    await Promise.all(["W_output", "context"].map((tensor) => heads[0].name(tensor)).map((tensor) => trace.has(tensor) && trace.load(tensor)));
    const [update, bias, ...outputs] = await Promise.all([
      row(`${name}.mlp.output`), heads[0].learned("b_output"), ...heads.map((one) => one.rows("output", token, token + 1)),
    ]);
    return { bias: bias?.data ?? [], vectors: [
      ...outputs.map(({ data }, i) => ({ id: `h${layer}.${i}`, name: `layer ${layer}, head ${i}`, earlier: { layer, head: i }, vector: data })),
      { id: `m${layer}`, name: `MLP ${layer}`, earlier: null, vector: update },
    ] };
  }))]);
  /** @type {(Part & {vector: ArrayLike<number>})[]} */
  const all = [{ id: "token", name: `token ${trace.tokens(head.attention)[0][token].display}`, earlier: null, vector: Float64Array.from(embedded, (x, c) => x - (position[c] ?? 0)) }];
  if (position.length) all.push({ id: "position", name: `position ${token}`, earlier: null, vector: position });
  all.push(...written.flatMap(({ vectors }) => vectors));
  const biases = Float64Array.from(embedded, (_, c) => written.reduce((sum, { bias }) => sum + (bias[c] ?? 0), 0));
  const constants = [`${block}.attention_norm.bias`, ...["b_query", "b_key"].map((name) => head.name(name)), ...layers.map(({ heads }) => heads[0].name("b_output"))];
  if (constants.some((name) => trace.has(name))) all.push({ id: "biases", name: "biases", earlier: null, vector: biases });
  const data = new Float64Array(all.length * embedded.length);
  all.forEach(({ vector }, i) => data.set(vector, i * embedded.length));
  return { parts: all, stream: { data, rows: all.length, columns: embedded.length } };
}

/**
 * The function from the parts of a stream to those of a query or key. All norms divide by the size of
 * the sum of the parts: the parts of the complete stream have the norms of the model, and a single row
 * has its own norms. The constants (biases) belong to the rows that are marked.
 * @param {Head} head @param {"queries" | "keys"} role @param {number} token
 */
async function projection(head, role, token) {
  const { trace, block } = head;
  const { kind, eps } = trace.manifest.model?.norm ?? {};
  const singular = role === "queries" ? "query" : "key";
  const optional = async (/** @type {string} */ name) => (trace.has(name) ? (await trace.matrix(name)).data : null);
  const weight = /** @type {ArrayLike<number>} */ (await optional(`${block}.attention_norm.weight`));
  const bias = await optional(`${block}.attention_norm.bias`);
  const matrix = /** @type {import("./attention.js").Matrix} */ (await head.learned(`W_${singular}`));
  const offset = (await head.learned(`b_${singular}`))?.data ?? null;
  const scales = await optional(head.name(`${role[0]}_norm.weight`)); // of QK-norm
  const isRotated = trace.has(head.name(`unrotated_${role}`));
  const [before, after] = await Promise.all([isRotated ? `unrotated_${role}` : role, role].map((name) => head.read(name, token, token + 1)));
  return (/** @type {Matrix} */ rows, /** @type {boolean[]} */ isBias) => {
    const normed = shifted(normalized(kind === "layer" ? centered(rows) : rows, weight, eps), bias, isBias);
    const products = shifted(times(normed, matrix), offset, isBias);
    const scaled = scales ? normalized(products, scales, eps) : products;
    return isRotated ? turned(scaled, before, after) : scaled;
  };
}

/** The sum of the rows. @param {Matrix} rows */
function summed({ data, columns }) {
  const sum = new Float64Array(columns);
  for (let at = 0; at < data.length; at++) sum[at % columns] += data[at];
  return sum;
}

/** A matrix with each number changed. @param {Matrix} matrix @param {(x: number, row: number, column: number) => number} change */
function mapped({ data, rows, columns }, change) {
  const result = new Float64Array(data.length);
  for (let i = 0; i < rows; i++) for (let c = 0; c < columns; c++) result[i * columns + c] = change(data[i * columns + c], i, c);
  return { data: result, rows, columns };
}

/** Subtract from each row its mean. @param {Matrix} rows */
function centered(rows) {
  const means = new Float64Array(rows.rows);
  for (let at = 0; at < rows.data.length; at++) means[Math.floor(at / rows.columns)] += rows.data[at] / rows.columns;
  return mapped(rows, (x, i) => x - means[i]);
}

/** weight * row / (the root mean square of the sum of the rows). @param {Matrix} rows @param {ArrayLike<number>} weight @param {number} eps */
function normalized(rows, weight, eps) {
  const sum = summed(rows);
  const size = Math.sqrt(dot(sum, sum) / rows.columns + eps);
  return mapped(rows, (x, _, c) => (weight[c] * x) / size);
}

/** Add a bias to the marked rows. @param {{data: Float64Array, rows: number, columns: number}} rows @param {ArrayLike<number> | null} bias @param {boolean[]} isBias */
function shifted(rows, bias, isBias) {
  return bias ? mapped(rows, (x, i, c) => x + (isBias[i] ? bias[c] : 0)) : rows;
}

/** The dot product. @param {ArrayLike<number>} one @param {ArrayLike<number>} other */
export function dot(one, other) {
  let sum = 0;
  for (let c = 0; c < one.length; c++) sum += one[c] * other[c];
  return sum;
}

/** A query or key minus deleted parts, with the norms frozen. @param {Side} side @param {Set<string>} deleted */
export function predicted({ complete, vectors }, deleted) {
  const rest = Float64Array.from(complete);
  for (const id of deleted) vectors.get(id)?.forEach((x, c) => { rest[c] -= x; });
  return rest;
}

/**
 * The weight of a key in a row of the trace when the scores of the row change.
 * @param {Facts} facts @param {ArrayLike<number>} before  the scores of the trace @param {ArrayLike<number>} logits  what the softmax reads in the trace
 * @param {ArrayLike<number>} after  the new scores @param {number} key
 */
export function weightOf({ scale, softcap }, before, logits, after, key) {
  const capped = (/** @type {number} */ score) => (softcap == null ? scale * score : softcap * Math.tanh((scale * score) / softcap));
  const now = Float64Array.from(after, (score, j) => logits[j] + capped(score) - capped(before[j]));
  const most = now.reduce((a, b) => Math.max(a, b), -Infinity);
  const total = now.reduce((sum, x) => sum + Math.exp(x - most), 0);
  return most === -Infinity ? 0 : Math.exp(now[key] - most) / total;
}
