// Attention with small functions in double precision, for figures whose numbers can be changed.
// tests/learn compares it with the ladder.

import { hashed, times } from "../../explore/static/attention.js";
import { book } from "./book.js";

/** @typedef {import("../../explore/static/trace.js").Matrix} Matrix */
/** What a broken computation leaves out or does wrongly. @typedef {"scale" | "mask" | "softmax-axis" | "projections" | "content" | "difference"} Fault */

/** A matrix of rows. @param {number[][]} rows @returns {Matrix} */
export function matrixOf(rows) {
  return { data: Float64Array.from(rows.flat()), rows: rows.length, columns: rows[0]?.length ?? 0 };
}

/** The rows of a matrix. @param {Matrix} matrix @returns {number[][]} */
export function rowsOf({ data, rows, columns }) {
  return Array.from({ length: rows }, (_, i) => Array.from({ length: columns }, (_, j) => data[i * columns + j]));
}

/** @param {Matrix} matrix @returns {Matrix} */
export function transpose(matrix) {
  const rows = rowsOf(matrix);
  return matrixOf(Array.from({ length: matrix.columns }, (_, j) => rows.map((row) => row[j])));
}

/** The words of a text, as `words_and_inputs` of ladder/rung.py splits it. @param {string} text */
export function wordsOf(text) {
  return text.split(/\s+/).filter(Boolean);
}

/** The three numbers of a word, those of `words_and_inputs`: from the book, or from a hash. @param {string} word */
export function features(word) {
  const known = book.sentence.toLowerCase().split(" ").indexOf(word.toLowerCase());
  if (known >= 0) return book.inputs[known];
  const letters = [...word.toLowerCase()].map((letter) => letter.codePointAt(0) ?? 0);
  return [0, 1, 2].map((feature) => Math.floor(((hashed([...letters, feature]) + 2 ** 31) * 100) / 2 ** 32) / 100);
}

/** The softmax of a row; -inf gives 0, and a row of -inf only gives 0. @param {number[]} scores */
export function softmax(scores) {
  const most = Math.max(...scores);
  const powers = scores.map((score) => (most === -Infinity ? 0 : Math.exp(score - most)));
  return divided(powers);
}

/** A row divided by its sum, or 0 if the sum is 0. @param {number[]} row */
export function divided(row) {
  const total = row.reduce((sum, x) => sum + x, 0);
  return row.map((x) => (total ? x / total : 0));
}

/** The sparsemax of a row (Martins and Astudillo 2016): the nearest point whose numbers are positive or 0 and sum to 1. @param {number[]} scores */
export function sparsemax(scores) {
  const sorted = scores.filter((score) => score > -Infinity).sort((a, b) => b - a);
  let [total, threshold] = [0, 0];
  for (const [i, score] of sorted.entries()) {
    total += score;
    if (1 + (i + 1) * score > total) threshold = (total - 1) / (i + 1);
  }
  return scores.map((score) => Math.max(score - threshold, 0));
}

/**
 * The steps of one head, by their names.
 * @param {{x: Matrix, W_query: Matrix, W_key: Matrix, W_value: Matrix}} inputs
 * @param {"fixed" | "simplified" | "trainable" | "causal"} rung  of the ladder
 * @param {Fault | null} [fault]
 * @returns {Record<string, Matrix>}
 */
export function attention({ x, W_query, W_key, W_value }, rung, fault = null) {
  const [learned, causal] = [rung === "trainable" || rung === "causal", rung === "causal"];
  const project = (/** @type {Matrix} */ W) => (learned && fault !== "projections" ? times(x, W) : x);
  const [queries, keys, values] = [W_query, W_key, W_value].map(project);
  const positional = rung === "fixed" || fault === "content";
  const distances = Array.from({ length: x.rows }, (_, i) => Array.from({ length: x.rows }, (_, j) => Math.abs(i - j)));
  const scores = positional ? matrixOf(distances.map((row) => row.map((steps) => 0.5 ** steps))) : times(queries, transpose(keys));
  const scale = learned && fault !== "scale" ? 1 / Math.sqrt(keys.columns) : 1;
  const divisions = rowsOf(scores).map((row) => row.map((score) => score * scale));
  const masked = divisions.map((row, i) => row.map((score, j) => (causal && fault !== "mask" && j > i ? -Infinity : score)));
  const weights = matrixOf(normalized(masked, fault ?? (positional ? "content" : null)));
  return {
    x, W_query, W_key, W_value, queries, keys, values, scores, scaled: matrixOf(divisions), masked: matrixOf(masked), weights,
    context: times(weights, values),
  };
}

/** The weights of rows of scores. @param {number[][]} scores @param {Fault | null} fault */
function normalized(scores, fault) {
  if (fault === "difference") return scores.map((row) => divided(row.map(() => 1)));
  if (fault === "content") return scores.map((row) => divided(row.map((score) => (score === -Infinity ? 0 : score))));
  if (fault === "softmax-axis") return rowsOf(transpose(matrixOf(rowsOf(transpose(matrixOf(scores))).map(softmax)))); // each column
  return scores.map(softmax);
}
