// The axes (batch, heads, tokens, d) as a picture, and texts of different lengths in one batch.

import { button, h } from "../../explore/static/dom.js";
import { times } from "../../explore/static/attention.js";
import { largest } from "../../explore/static/colours.js";
import { legend } from "../../explore/static/matrix.js";
import { pixels, short } from "../../explore/static/numbers.js";
import { book } from "./book.js";
import { attention, features, matrixOf, rowsOf, softmax, wordsOf } from "./compute.js";
import { choice, difference, list, part, readable, sentenceBox, slider, tick, titled, withBook } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {import("../../explore/static/trace.js").Matrix} Matrix */
/** @typedef {{name: string, axes: string[], does: Record<string, string>, code: string}} Operation  does: what happens to each axis */

const PADDING = "░";
const WORDS = 8; // the first words of a sentence

/** @type {Operation[]} */
export const OPERATIONS = [
  { name: "x", axes: ["batch", "tokens", "d_in"], code: "x", does: { batch: "one entry per text", tokens: "one entry per word", d_in: "the numbers of a word" } },
  { name: "projected", axes: ["batch", "tokens", "heads · d"], code: "x @ W_query", does: { batch: "kept", tokens: "kept: every token is multiplied by the same matrix", "heads · d": "d_in is summed over; the features of all heads replace it" } },
  { name: "split", axes: ["batch", "heads", "tokens", "d"], code: "reshape(batch, tokens, heads, d).transpose(1, 2)", does: { batch: "kept", heads: "new: cut out of the features and moved in front of the tokens", tokens: "kept", d: "what is left of the features" } },
  { name: "scores", axes: ["batch", "heads", "queries", "keys"], code: "queries @ keys.transpose(-1, -2)", does: { batch: "kept: no text sees another one", heads: "kept: no head sees another one", queries: "the tokens of the queries", keys: "the tokens of the keys; d is summed over and disappears" } },
  { name: "weights", axes: ["batch", "heads", "queries", "keys"], code: "softmax(scores / d**0.5, axis=-1)", does: { batch: "kept", heads: "kept", queries: "kept: one distribution per query", keys: "normalized: the weights along this axis sum to 1" } },
  { name: "context", axes: ["batch", "heads", "tokens", "d"], code: "weights @ values", does: { batch: "kept", heads: "kept", tokens: "the queries are the tokens again; the keys are summed over and disappear", d: "the features of the values" } },
  { name: "merged", axes: ["batch", "tokens", "heads · d"], code: "transpose(1, 2).reshape(batch, tokens, heads * d)", does: { batch: "kept", tokens: "kept", "heads · d": "the heads are put next to each other again" } },
];

/** The axes of a batch, or with view = "padding" texts of different lengths. @param {Record<string, any>} options @param {Figure} figure */
export function draw(options, figure) {
  return options.view === "padding" ? padding(options, figure) : axes(options, figure);
}

/**
 * The results of all operations: for each text the matrices of its heads, or a single matrix.
 * @param {string[]} texts @returns {Record<string, Matrix[][]>}
 */
export function computed(texts) {
  const { W_query, W_key, W_value } = book;
  const heads = [[W_query, W_key, W_value], [W_key, W_value, W_query]] // the second head has them in another order
    .map(([query, key, value]) => ({ W_query: matrixOf(query), W_key: matrixOf(key), W_value: matrixOf(value) }));
  const all = texts.map((text) => {
    const x = matrixOf(wordsOf(text).map(features));
    return { x, heads: heads.map((matrices) => attention({ x, ...matrices }, "trainable", null)) };
  });
  const ofHeads = (/** @type {string} */ name) => all.map(({ heads }) => heads.map((steps) => steps[name]));
  const joined = (/** @type {string} */ name) => ofHeads(name).map((heads) => [besideEachOther(heads)]);
  return {
    x: all.map(({ x }) => [x]), projected: joined("queries"), split: ofHeads("queries"), scores: ofHeads("scores"),
    weights: ofHeads("weights"), context: ofHeads("context"), merged: joined("context"),
  };
}

/** @param {Matrix[]} matrices */
function besideEachOther(matrices) {
  const rows = matrices.map(rowsOf);
  return matrixOf(rows[0].map((_, i) => rows.flatMap((one) => one[i])));
}

/** @param {Record<string, any>} options @param {Figure} figure */
function axes(options, figure) {
  const { state } = figure;
  state.at ??= 3;
  const results = computed(options.texts);
  const words = options.texts.map(wordsOf);
  const place = h("div");
  const buttons = OPERATIONS.map(({ name }, i) => button(name, () => show(i)));
  const size = (/** @type {string} */ axis) => ({ batch: words.length, heads: 2, "heads · d": 4, d: 2, d_in: 3 })[axis] ?? words[0].length;

  /** @param {Operation} operation @param {Operation | undefined} before */
  function shape({ axes }, before) {
    return h("div", { class: "axes" }, axes.map((axis) =>
      h("span", { class: "axis", "data-axis": axis, "aria-current": before && !before.axes.includes(axis) ? "true" : false }, `${axis} `, h("b", {}, size(axis)))));
  }

  /** The matrices of an operation: a row per text, a column per head. @param {string} name @param {number} width  of a cell */
  function picture(name, width) {
    const all = results[name];
    const most = largest(all.flat().flatMap(({ data }) => [...data]));
    return h("div", { class: "batch" }, all.map((heads, text) => h("div", { class: "entry" }, h("h4", {}, `text ${text}`), h("div", { class: "heads" }, heads.map((one, head) => h("figure", {},
      heads.length > 1 && h("h4", {}, `head ${head}`),
      readable(part(`${name}, text ${text}${heads.length > 1 ? `, head ${head}` : ""}`, one, {
        width, height: 20, most, scale: name === "weights" ? "share" : "signed", rowLabels: head ? null : words[text],
      }), figure, [words[text], ["scores", "weights"].includes(name) ? words[text] : null]).element))))));
  }

  /** @param {number} at */
  function show(at) {
    state.at = at;
    buttons.forEach((one, i) => one.setAttribute("aria-pressed", String(i === at)));
    const [operation, before] = [OPERATIONS[at], OPERATIONS[at - 1]];
    const [columns, earlier] = [operation, before].map((one) => (one ? results[one.name][0].reduce((sum, { columns }) => sum + columns, 0) : 0));
    const width = figure.width > 700 ? (figure.width - 345) / (columns + earlier) : (figure.width - 130) / Math.max(columns, earlier);
    place.replaceChildren(
      h("p", {}, h("code", {}, operation.code)),
      h("div", { class: "shelf" },
        before ? h("div", { class: "moment" }, shape(before, undefined), picture(before.name, pixels(width, 12, 40))) : "",
        before ? h("div", { class: "arrow" }, "→") : "",
        h("div", { class: "moment" }, shape(operation, before), picture(operation.name, pixels(width, 12, 40)))),
      h("dl", { class: "does" }, Object.entries(operation.does).map(([axis, text]) => [h("dt", {}, axis), h("dd", {}, text)])));
  }
  show(state.at);
  return h("div", {}, h("div", { class: "row", role: "group", "aria-label": "operation" }, buttons), place);
}

/** @typedef {{side: "right" | "left", extra: number, causal: boolean, masked: boolean}} Layout  of a batch; masked: whether padding is hidden */
/** @typedef {{words: string[], real: [number, number], allowed: boolean[][], weights: Matrix, context: Matrix}} Row  a text of a batch */

/** Texts of different lengths, with padding up to the longest one and `extra` more. @param {string[]} texts @param {Layout} layout @returns {Row[]} */
export function batch(texts, { side, extra, causal, masked }) {
  const split = texts.map(wordsOf);
  const length = Math.max(...split.map((words) => words.length)) + extra;
  return split.map((own) => {
    const fill = Array(length - own.length).fill(PADDING);
    const words = side === "right" ? [...own, ...fill] : [...fill, ...own];
    const first = side === "right" ? 0 : fill.length;
    /** @type {[number, number]} */
    const real = [first, first + own.length];
    const { scaled, values } = withBook(words.map(features));
    const allowed = words.map((_, i) => words.map((_, j) => (!causal || j <= i) && (!masked || (j >= real[0] && j < real[1]))));
    const weights = matrixOf(rowsOf(scaled).map((row, i) => softmax(row.map((score, j) => (allowed[i][j] ? score : -Infinity)))));
    return { words, real, allowed, weights, context: times(weights, values) };
  });
}

/** @param {Record<string, any>} options @param {Figure} figure */
function padding(options, figure) {
  const { state } = figure;
  state.side ??= "right";
  state.extra ??= 0;
  state.causal ??= false;
  const sentence = sentenceBox(figure, options.texts.at(-1), WORDS, update); // of the last text
  const place = h("div");
  const change = (/** @type {string} */ name) => (/** @type {any} */ value) => {
    state[name] = value;
    update();
  };

  function update() {
    const layout = { side: state.side, extra: state.extra, causal: state.causal };
    const watched = options.texts.length - 1;
    const text = sentence.words().join(" ");
    if (!text) return place.replaceChildren();
    const rows = batch([...options.texts.slice(0, watched), text], { ...layout, masked: !figure.broken });
    const [alone] = batch([text], { ...layout, extra: 0, masked: true });
    const { words, real, context } = rows[watched];
    const [own, inBatch] = [rowsOf(alone.context).at(-1) ?? [], rowsOf(context)[real[1] - 1]];
    const width = pixels((figure.width - 110) / words.length, 16, figure.large ? 42 : 34);
    place.replaceChildren(
      h("div", { class: "scroll" }, h("table", { class: "texts" }, h("tbody", {}, rows.map(({ words, real }, i) => h("tr", {},
        h("th", { scope: "row" }, `text ${i}`), words.map((word, j) => h("td", { class: j < real[0] || j >= real[1] ? "padding" : false }, word))))))),
      h("div", { class: "shelf" }, rows.map(({ words, weights, allowed }, i) => titled(part(`weights of text ${i}`, weights, {
        rowLabels: words, columnLabels: words, scale: "share", most: 1, width, height: 22, role: "weights", hatched: (q, k) => !allowed[q][k],
      }), figure))),
      legend("share", 1, true));
    figure.say([[`context of “${words[real[1] - 1]}”, its text alone`, list(own)], ["in this batch", list(inBatch)], ["difference", short(difference(own, inBatch))]]);
  }
  update();
  return h("div", {}, sentence.element,
    h("div", { class: "row" },
      slider("more padding", { least: 0, most: 4, value: state.extra }, change("extra")),
      choice("padding on the", { right: "right", left: "left" }, state.side, change("side")),
      tick("causal mask", state.causal, change("causal"))),
    place);
}
