// The steps of attention on a sentence, as matrices with numbers that can be changed.

import { h } from "../../explore/static/dom.js";
import { largest } from "../../explore/static/colours.js";
import { equation } from "../../explore/static/math.js";
import { legend, matrix, product, transposed } from "../../explore/static/matrix.js";
import { bracket, exact, pixels, short } from "../../explore/static/numbers.js";
import { book } from "./book.js";
import { sentenceBox } from "./controls.js";
import { attention, features, matrixOf, rowsOf } from "./compute.js";
import { edit } from "./edit.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {import("./compute.js").Matrix} Matrix */
/** @typedef {import("../../explore/static/matrix.js").Part} Part */
/** @typedef {import("../../explore/static/matrix.js").Drawn} Drawn */
/** @typedef {import("../../explore/static/matrix.js").Cell} Cell */
/**
 * What a figure shows. right: the steps without the fault.
 * @typedef {{words: string[], steps: Record<string, Matrix>, right: Record<string, Matrix>, rung: string, fault: string | null, drawn: Map<string, Drawn>}} Example
 */

const WORDS = 10; // the first words of a sentence
const PRODUCT = 520; // pixels that the factors of a product need
const MATRICES = /** @type {const} */ (["W_query", "W_key", "W_value"]);
const SQUARE = ["scores", "scaled", "masked", "weights"]; // queries by keys

/**
 * Options: steps, the names in order; an empty name begins a new line. rung, which decides how they are computed: "fixed",
 * "simplified", "trainable" or "causal" (the default). products: the steps that are drawn with their factors.
 * remove: the fault of compute.js while the figure is broken. text: another sentence.
 * @param {Record<string, any>} options @param {Figure} figure
 */
export function draw(options, figure) {
  const { state } = figure; // text; features: changed numbers by the word; matrices: changed ones by their names
  const sentence = sentenceBox(figure, options.text, WORDS, update);
  const slots = options.steps.map((/** @type {string} */ name) => (name ? h("figure", { "data-step": name }) : h("hr", {})));

  function update() {
    const words = sentence.words();
    const example = computed(words, options, figure);
    for (const [at, slot] of slots.entries()) {
      if (!options.steps[at] || slot.querySelector("input")) continue; // a number is being changed
      slot.replaceChildren(...(words.length ? step(options.steps[at], at, example) : []));
    }
  }

  /** The title, the equation and the picture of a step. @param {string} name @param {number} at @param {Example} example */
  function step(name, at, example) {
    const { steps, right } = example;
    const text = formula(name, options.steps.slice(0, at), example);
    const all = options.products?.includes(name) ? factorsOf(name, example) : null;
    const factors = figure.width > PRODUCT && !figure.large ? all : null; // on a slide large numbers are better
    const inputs = !factors && all?.includes("x") && !options.steps.includes("x") ? [h("h3", {}, "x"), h("div", { class: "factor" }, single("x", at, example))] : [];
    const picture = factors ? multiplied(name, factors, at, example) : single(name, at, example);
    const changed = figure.broken && !same(steps[name], right[name]);
    return [
      ...inputs,
      factors ? null : h("h3", { class: name }, name, h("span", { class: "shape" }, ` ${steps[name].rows} × ${steps[name].columns}`)),
      text && equation(`${factors ? `${name} = ` : ""}${text}`),
      changed ? h("p", { class: "note changed" }, "changed") : null,
      h("div", { class: "scroll" }, picture),
    ].filter((node) => node != null);
  }

  /** A step with its factors, whose labels it does not repeat. @param {string} name @param {[string, string]} factors @param {number} at @param {Example} example */
  function multiplied(name, factors, at, example) {
    const [left, top, result] = [...factors, name].map((one) => part(one, at, example));
    for (const one of [left, top]) if (one.name !== "x") one.onpick = undefined; // one matrix of a slot can be changed
    return product({ ...left, columnLabels: null }, top, { ...result, columnLabels: null, rowLabels: top.rowLabels && example.words });
  }

  /** One matrix; next to weights the sums of their rows. @param {string} name @param {number} at  of the slot @param {Example} example */
  function single(name, at, example) {
    const drawn = matrix(part(name, at, example));
    example.drawn.set(name, drawn);
    if (name !== "weights") return drawn.element;
    const sums = rowsOf(example.steps.weights).map((row) => [row.reduce((sum, x) => sum + x, 0)]);
    const column = matrix({ ...part(name, at, example), ...matrixOf(sums), name: "sums of the rows", rowLabels: null, columnLabels: ["sum"], scale: "signed", most: Infinity, hatched: undefined, onhover: undefined });
    return h("div", { class: "beside-sums" }, drawn.element, column.element);
  }

  /** @param {string} name @param {number} at  of the slot @param {Example} example @returns {Part} */
  function part(name, at, example) {
    const { words, steps } = example;
    const own = name.replace(/\^T$/, "");
    const { data, rows, columns } = steps[own];
    const square = SQUARE.includes(own);
    const share = own === "weights";
    const width = square ? pixels((figure.width - (share ? 146 : 110)) / words.length, 22, figure.large ? 47 : 38) : figure.large ? 47 : 42; // labels and sums
    const free = own === "x" || own.startsWith("W_");
    /** @type {Part} */
    const drawn = {
      name: own, title: own, role: own, data, rows, columns, first: [0, 0],
      rowLabels: own.startsWith("W_") ? null : words, columnLabels: square ? words : null,
      scale: share ? "share" : "signed", most: share ? 1 : largest(data), width, height: 26,
      hatched: own === "masked" || own === "weights" ? (i, j) => steps.masked.data[i * columns + j] === -Infinity : undefined,
      onhover: (cell) => {
        for (const [one, [row, column]] of sources(own, cell, example)) example.drawn.get(one)?.light(row, column);
        figure.point(cell && calculation(own, cell, example));
      },
      onpick: free ? (cell) => change(own, cell, slots[at], example) : undefined,
      at: state.at?.[0] === own ? state.at[1] : null,
    };
    if (name === own) return drawn;
    return { ...transposed(drawn), rowLabels: null, columnLabels: words, onpick: undefined };
  }

  /** Let the reader change a number. @param {string} name @param {Cell} cell @param {HTMLElement} slot @param {Example} example */
  function change(name, cell, slot, { words, steps }) {
    const [i, j] = cell;
    const { data, columns } = steps[name];
    const label = `${name}, ${name === "x" ? words[i] : `row ${i}`}, column ${j}`;
    const set = (/** @type {number} */ number) => {
      const rows = rowsOf(steps[name]);
      rows[i][j] = number;
      if (name === "x") state.features = { ...state.features, [words[i].toLowerCase()]: rows[i] };
      else state.matrices = { ...state.matrices, [name]: rows };
      update();
    };
    edit(slot, i * columns + j, data[i * columns + j], label, set, () => {
      state.at = [name, cell];
      update();
    });
  }

  update();
  return h("div", { class: "steps" },
    sentence.element,
    h("div", { class: "shelf" }, slots),
    options.steps.includes("weights") && legend("share", 1, options.steps.includes("masked") || (options.rung ?? "causal") === "causal"),
    h("p", { class: "note" }, "Blue is negative, red is positive. ", slots.some((/** @type {Element} */ slot) => slot.querySelector(".pickable")) && "The numbers of x and of the matrices W can be changed: click one, or move there with the arrow keys and press Enter."));
}

/** @param {string[]} words @param {Record<string, any>} options @param {Figure} figure @returns {Example} */
function computed(words, options, figure) {
  const { state } = figure;
  const vectors = words.map((word) => state.features?.[word.toLowerCase()] ?? features(word));
  const [W_query, W_key, W_value] = MATRICES.map((name) => matrixOf(state.matrices?.[name] ?? book[name]));
  const inputs = { x: matrixOf(vectors), W_query, W_key, W_value };
  const rung = options.rung ?? "causal";
  const fault = figure.broken ? options.remove : null;
  return { words, steps: attention(inputs, rung, fault), right: attention(inputs, rung), rung, fault, drawn: new Map() };
}

/** @param {Matrix} one @param {Matrix} other */
function same(one, other) {
  return one.rows === other.rows && one.columns === other.columns && rowsOf(one).flat().every((x, i) => x === other.data[i]);
}

/** @param {string} rung */
function isLearned(rung) {
  return rung === "trainable" || rung === "causal";
}

/** What a step is computed from. @param {string} name @param {string[]} earlier  steps that are shown @param {Example} example */
function formula(name, earlier, example) {
  const factors = factorsOf(name, example);
  const { rung, fault } = example;
  const raw = earlier.includes("scores") || isLearned(rung) ? "scores" : rung === "fixed" ? "2^-|i - j|" : "x x^T";
  const last = rung === "causal" ? "masked" : !isLearned(rung) || fault === "scale" ? raw : earlier.includes("scaled") ? "scaled" : `${raw} / sqrt(d_k)`;
  const normalized = { content: `${last} / (sum ${last})`, difference: "1 / n", "softmax-axis": `softmax(${last}) in every column` }[fault ?? (rung === "fixed" ? "content" : "")];
  return factors?.join(" ") ?? {
    queries: "x",
    keys: "x",
    values: "x",
    scores: "2^-|i - j|",
    scaled: fault === "scale" ? "scores" : "scores / sqrt(d_k)",
    masked: fault === "mask" ? "scaled" : "scaled if j <= i else -inf",
    weights: normalized ?? `softmax(${last})`,
  }[name];
}

/** The factors of a step that is a product; ^T for a transposed one. @param {string} name @param {Example} example @returns {[string, string] | null} */
function factorsOf(name, { rung, fault }) {
  const plain = !isLearned(rung);
  /** @type {Record<string, [string, string]>} */
  const factors = {
    ...(fault !== "projections" && { queries: ["x", "W_query"], keys: ["x", "W_key"], values: ["x", "W_value"] }),
    ...(fault !== "content" && rung !== "fixed" && { scores: plain ? ["x", "x^T"] : ["queries", "keys^T"] }),
    context: ["weights", plain ? "x" : "values"],
  };
  return factors[name] ?? null;
}

/** The rows and columns of other matrices that a cell is computed from. @param {string} name @param {Cell | null} cell @param {Example} example @returns {[string, [number | null, number | null]][]} */
function sources(name, cell, example) {
  const [i, j] = cell ?? [null, null];
  const factors = factorsOf(name, example);
  if (name === "scores" && factors) return [[factors[0], [i, null]], [factors[1].replace("^T", ""), [j, null]]];
  if (factors) return [[factors[0], [i, null]], [factors[1], [null, j]]];
  const before = SQUARE[SQUARE.indexOf(name) - 1];
  return before ? SQUARE.slice(0, 3).map((one) => [one, [i, name === "weights" ? null : j]]) : [];
}

/** A cell, and how it is computed. @param {string} name @param {Cell} cell @param {Example} example @returns {[string, string][]} */
function calculation(name, [i, j], example) {
  const { words, steps } = example;
  const { data, columns } = steps[name];
  const at = (/** @type {string} */ one, /** @type {number} */ row, /** @type {number} */ column) => steps[one].data[row * steps[one].columns + column];
  const number = data[i * columns + j];
  const square = SQUARE.includes(name);
  const place = /** @type {[string, string][]} */ (
    square ? [["query", words[i]], ["key", words[j]]] : name.startsWith("W_") ? [["row", String(i)], ["column", String(j)]] : [["token", words[i]], ["column", String(j)]]
  );
  const factors = factorsOf(name, example);
  const terms = factors && Array.from({ length: steps[factors[0]].columns }, (_, c) =>
    `${short(at(factors[0], i, c))} · ${bracket(factors[1].endsWith("^T") ? at(factors[1].slice(0, -2), j, c) : at(factors[1], c, j))}`);
  const how = terms ? `${terms.join(" + ")} = ${short(number)}` : exact(number);
  return [...place, [name, how]];
}
