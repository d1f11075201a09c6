// What several figures use: the sentence, sliders, choices, titled matrices, and the steps with the matrices of the book.

import { h } from "../../explore/static/dom.js";
import { largest } from "../../explore/static/colours.js";
import { matrix } from "../../explore/static/matrix.js";
import { exact, short } from "../../explore/static/numbers.js";
import { book } from "./book.js";
import { attention, matrixOf, wordsOf } from "./compute.js";

/** @typedef {import("../../explore/static/trace.js").Matrix} Matrix */
/** @typedef {import("../../explore/static/matrix.js").Part} Part */
/** @typedef {import("./figure.js").Figure} Figure */

/**
 * A text box for the sentence, which is kept in `figure.state.text`. words: the first words, at
 * most `most`. @param {Figure} figure @param {string | undefined} text  before the reader changes it
 * @param {number} most @param {() => void} update  called at every change
 */
export function sentenceBox({ state }, text, most, update) {
  const input = /** @type {HTMLInputElement} */ (h("input", {
    value: state.text ?? text ?? book.sentence, size: 40, maxlength: 200, spellcheck: "false",
    oninput: () => { state.text = input.value; tell(); update(); },
  }));
  const note = h("span", { class: "note", role: "status" });
  const words = () => wordsOf(input.value).slice(0, most);
  const tell = () => {
    const count = wordsOf(input.value).length;
    note.textContent = count > most ? `The figure uses the first ${most} words.` : count ? "" : "Type at least one word.";
  };
  tell();
  return { element: h("div", { class: "row" }, h("label", {}, "Sentence ", input), note), words };
}

/**
 * A slider with its label and its value.
 * @param {string} label @param {{least: number, most: number, value: number, shown?: (x: number) => string}} range
 * @param {(x: number) => void} change  called while it moves
 */
export function slider(label, { least, most, value, shown = String }, change) {
  const output = h("output", {}, shown(value));
  const input = h("input", {
    type: "range", min: least, max: most, step: 1, value,
    oninput: (/** @type {any} */ event) => {
      const x = Number(event.target.value);
      output.textContent = shown(x);
      change(x);
    },
  });
  return h("label", { class: "slider" }, h("span", {}, label), input, output);
}

/**
 * A menu.
 * @param {string} label @param {Record<string, string>} options  texts by their values @param {string} value @param {(value: string) => void} change
 */
export function choice(label, options, value, change) {
  return h("label", {}, `${label} `, h("select", { onchange: (/** @type {any} */ event) => change(event.target.value) },
    Object.entries(options).map(([name, text]) => h("option", { value: name, selected: name === value }, text))));
}

/** A box to tick. @param {string} label @param {boolean} value @param {(value: boolean) => void} change */
export function tick(label, value, change) {
  return h("label", {}, h("input", { type: "checkbox", checked: value, onchange: (/** @type {any} */ event) => change(event.target.checked) }), ` ${label}`);
}

/**
 * A part to draw, of a complete matrix with cells that have room for numbers.
 * @param {string} name @param {Matrix} numbers @param {Partial<Part>} [options] @returns {Part}
 */
export function part(name, numbers, options = {}) {
  return { name, title: name, ...numbers, first: [0, 0], scale: "signed", most: largest(numbers.data) || 1, width: 44, height: 26, ...options };
}

/** The names of rows and of columns; the same words if they are queries and keys. @typedef {[string[] | null | undefined, string[] | null | undefined]} Names */

/** A matrix that says what is in the cell that the reader points at, with the mouse or the arrow keys. @param {Part} one @param {Figure} figure @param {Names} [names] */
export function readable(one, figure, names = [one.rowLabels, one.columnLabels]) {
  return matrix({ ...one, onhover: (cell) => figure.point(cell && readout(one, cell, names)) });
}

/** @param {Part} one @param {import("../../explore/static/matrix.js").Cell} cell @param {Names} names @returns {[string, string][]} */
function readout(one, [i, j], [rows, columns]) {
  const [row, column] = rows && rows === columns ? ["query", "key"] : ["row", "column"];
  const number = exact(one.data[i * one.columns + j]);
  return [
    [row, rows?.[i] ?? String(i)], [column, columns?.[j] ?? String(j)],
    [one.name, one.hidden?.(i, j) ? "not computed yet" : one.hatched?.(i, j) ? `${number} (masked)` : number],
  ];
}

/** A readable matrix under its title and shape. @param {Part} one @param {Figure} figure @param {Names} [names] */
export function titled(one, figure, names) {
  return h("figure", { "data-matrix": one.name },
    h("h3", { class: one.role }, `${one.title} `, h("span", { class: "shape" }, `${one.rows} × ${one.columns}`)),
    h("div", { class: "scroll" }, readable(one, figure, names).element));
}

/** The steps of attention with the matrices of the book. @param {number[][]} rows  of x @param {"trainable" | "causal"} [rung] */
export function withBook(rows, rung = "trainable") {
  const [W_query, W_key, W_value] = [book.W_query, book.W_key, book.W_value].map(matrixOf);
  return attention({ x: matrixOf(rows), W_query, W_key, W_value }, rung);
}

/** Numbers in parentheses. @param {ArrayLike<number>} numbers */
export function list(numbers) {
  return `(${Array.from(numbers, short).join(", ")})`;
}

/** The largest difference, without the rounding of the last digits. @param {ArrayLike<number>} one @param {ArrayLike<number>} other */
export function difference(one, other) {
  const most = largest(Array.from(one, (x, i) => x - other[i]));
  return most < 1e-12 ? 0 : most;
}
