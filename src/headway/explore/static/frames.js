// The frames of the row-by-row and tile-by-tile pictures: from numbers to numbers, without drawing.

/** @typedef {{data: ArrayLike<number>, rows: number, columns: number}} Matrix */

const BLOCK = 2; // keys per tile

/** How many frames a step has. @param {"rows" | "softmax" | "tiles"} kind @param {number} rows @param {number} keys */
export function count(kind, rows, keys) {
  return kind === "softmax" ? 3 * rows : kind === "tiles" ? Math.ceil(keys / BLOCK) + 1 : rows;
}

/** A row of a matrix. @param {Matrix} matrix @param {number} i */
export function rowOf({ data, columns }, i) {
  return Array.from({ length: columns }, (_, j) => data[i * columns + j]);
}

/**
 * The dot product of a query and the key with the largest score in its row.
 * @param {Matrix} queries @param {Matrix} keys @param {number} row
 */
export function dotFrame(queries, keys, row) {
  const query = rowOf(queries, row);
  const all = Array.from({ length: keys.rows }, (_, j) => rowOf(keys, j).map((x, c) => query[c] * x));
  const scores = all.map(sum);
  const key = scores.indexOf(Math.max(...scores));
  return { key, query, other: rowOf(keys, key), score: scores[key] };
}

/**
 * Three frames per row: the exponentials, their sum, the division.
 * @param {Matrix} scores  −∞ where masked @param {boolean} [plain]  divide the scores themselves by their sum
 */
export function softmaxFrames(scores, plain = false) {
  return Array.from({ length: scores.rows }, (_, row) => {
    const numbers = rowOf(scores, row);
    const largest = Math.max(...numbers);
    const raised = numbers.map((x) => (plain ? x : largest === -Infinity ? 0 : Math.exp(x - largest)));
    const total = sum(raised);
    const weights = raised.map((x) => (total ? x / total : 0));
    return ["exponentials", "sum", "division"].map((part) => ({ row, part, scores: numbers, largest, raised, total, weights }));
  }).flat();
}

/**
 * A row of the context: weight times value for each key of a window, those of all other keys together, and their sum.
 * @param {Matrix} weights @param {Matrix} values @param {number} row @param {number} from @param {number} to
 */
export function contextFrame(weights, values, row, from, to) {
  const shares = rowOf(weights, row);
  const terms = shares.map((share, j) => rowOf(values, j).map((x) => share * x));
  const added = (/** @type {number[][]} */ rows) => Array.from({ length: values.columns }, (_, c) => sum(rows.map((one) => one[c])));
  const others = terms.filter((_, j) => j < from || j >= to);
  return { shares, terms: terms.slice(from, to), others: others.length ? added(others) : null, total: added(terms) };
}

/**
 * The online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): after each tile of keys, for every query the
 * maximum m, the sum l and the output c. `shrink` is exp(m - m'), by which the earlier sum and output are multiplied. In the
 * last frame the output is divided by the sum.
 * @param {Matrix} scores  −∞ where masked @param {Matrix} values @param {number} [block]  keys per tile
 * @param {boolean} [rescaled]  false: forget to multiply by `shrink`, to show what it is for
 */
export function tileFrames(scores, values, block = BLOCK, rescaled = true) {
  const width = values.columns;
  let state = Array.from({ length: scores.rows }, () => ({ largest: -Infinity, shrink: 1, total: 0, output: new Array(width).fill(0) }));
  const frames = [];
  for (let from = 0; from < scores.columns; from += block) {
    const to = Math.min(from + block, scores.columns);
    state = state.map((before, i) => {
      const tile = rowOf(scores, i).slice(from, to);
      const largest = Math.max(before.largest, ...tile);
      const zero = largest === -Infinity ? 0 : largest; // before the first allowed key
      const shrink = rescaled ? Math.exp(before.largest - zero) : 1;
      const raised = tile.map((x) => Math.exp(x - zero));
      const output = before.output.map((c, f) => shrink * c + sum(raised.map((x, j) => x * values.data[(from + j) * width + f])));
      return { largest, shrink, total: shrink * before.total + sum(raised), output };
    });
    frames.push({ from, to, rows: state, divided: false });
  }
  const rows = state.map((one) => ({ ...one, shrink: 1, output: one.output.map((c) => (one.total ? c / one.total : 0)) }));
  return [...frames, { from: 0, to: scores.columns, rows, divided: true }];
}

/** @param {number[]} numbers */
function sum(numbers) {
  return numbers.reduce((total, x) => total + x, 0);
}
