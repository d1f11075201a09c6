// Several heads on one sentence, and one head with the same numbers.

import { button, h } from "../../explore/static/dom.js";
import { legend, matrix } from "../../explore/static/matrix.js";
import { lines } from "../../explore/static/lines.js";
import { pixels, short } from "../../explore/static/numbers.js";
import { attention, matrixOf, rowsOf } from "./compute.js";
import { part, titled } from "./controls.js";
import { edit } from "./edit.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {{name: string, W_query: number[][], W_key: number[][], W_value: number[][]}} Head */

/**
 * Options: words; features and x, what the columns of x are and the numbers of each word; heads,
 * with their names and matrices; values, the names of the columns of the context; asking, the words
 * whose lines and contexts are drawn. While the figure is broken, one head has the matrices of all
 * heads, without the split.
 * @param {Record<string, any>} options @param {Figure} figure
 */
export function draw(options, figure) {
  const { state } = figure;
  /** @type {string[]} */
  const words = options.words.split(" ");
  const asking = options.asking.map((/** @type {string} */ word) => words.indexOf(word));
  const heads = figure.broken ? [joined(options.heads)] : /** @type {Head[]} */ (options.heads);
  const choice = h("div", { class: "row" });
  const pictures = h("div", { class: "pictures" });
  const input = h("figure", { "data-matrix": "x" });
  const result = h("div", {});

  function update() {
    /** @type {number[][]} */
    const x = state.x ?? options.x;
    const steps = heads.map((head) => computed(head, x));
    const show = (/** @type {boolean} */ asMatrix) => {
      state.asMatrix = asMatrix;
      update();
    };
    choice.replaceChildren(
      button("Lines", () => show(false), { "aria-pressed": String(!state.asMatrix) }),
      button("Matrix", () => show(true), { "aria-pressed": String(Boolean(state.asMatrix)) }));
    pictures.replaceChildren(...heads.map((head, at) => weightsOf(head, steps[at].weights)), ...(state.asMatrix ? [legend("share", 1, true)] : []));
    const context = asking.map((/** @type {number} */ i) => steps.flatMap((one) => rowsOf(one.context)[i]));
    result.replaceChildren(titled(part("context", matrixOf(context), { rowLabels: asking.map((/** @type {number} */ i) => words[i]), columnLabels: options.values, role: "context", most: 1, width: 54, height: 22 }), figure));
    if (!input.querySelector("input")) input.replaceChildren(h("h3", {}, "x ", h("span", { class: "shape" }, `${x.length} × ${x[0].length}`)), h("div", { class: "scroll" }, changeable(x)));
    const last = asking.at(-1);
    figure.say(steps.map(({ weights }, at) => {
      const reads = rowsOf(weights)[last].map((weight, j) => ({ weight, word: words[j] })).filter(({ weight }) => weight > 0.1);
      return [`“${words[last]}”, ${heads[at].name}`, reads.map(({ weight, word }) => `${word} ${short(weight)}`).join(", ")];
    }));
  }

  /** @param {Head} head @param {import("./compute.js").Matrix} weights */
  function weightsOf(head, weights) {
    const shown = part(head.name, weights, {
      rowLabels: words, columnLabels: words, scale: "share", most: 1, width: pixels((figure.width - 110) / words.length, 20, 34), height: 22, role: "weights", hatched: (i, j) => j > i,
    });
    if (state.asMatrix) return titled(shown, figure);
    const data = Float64Array.from(weights.data, (weight, cell) => (asking.includes(Math.floor(cell / words.length)) ? weight : 0));
    return h("figure", { "data-matrix": head.name }, h("h3", { class: "weights" }, head.name), scaling(lines({ ...shown, data })));
  }

  /** x, whose numbers can be changed. @param {number[][]} x */
  function changeable(x) {
    return matrix(part("x", matrixOf(x), {
      rowLabels: words, columnLabels: options.features, height: 22, width: 40, at: state.at,
      onpick: ([i, j]) => edit(input, i * x[0].length + j, x[i][j], `x, ${words[i]}, ${options.features[j]}`, (number) => {
        state.x = x.map((row, at) => (at === i ? row.with(j, number) : row));
        update();
      }, () => {
        state.at = [i, j];
        update();
      }),
    })).element;
  }

  update();
  return h("div", { class: "several" }, choice, pictures,
    h("div", { class: "shelf" }, !figure.large && input, result),
    h("details", {}, h("summary", {}, "The matrices of the heads"), figure.large && input,
      heads.map((head) => h("div", {}, h("h3", {}, head.name), h("div", { class: "shelf" }, (/** @type {const} */ (["W_query", "W_key", "W_value"])).map((name) =>
        titled(part(name, matrixOf(head[name]), { rowLabels: options.features, height: 22, width: 30 }), figure)))))));
}

/** The steps of a head. @param {Head} head @param {number[][]} x */
function computed({ W_query, W_key, W_value }, x) {
  return attention({ x: matrixOf(x), W_query: matrixOf(W_query), W_key: matrixOf(W_key), W_value: matrixOf(W_value) }, "causal");
}

/** One head whose matrices are those of all heads next to each other. @param {Head[]} heads @returns {Head} */
function joined(heads) {
  const beside = (/** @type {"W_query" | "W_key" | "W_value"} */ name) => heads[0][name].map((_, row) => heads.flatMap((head) => head[name][row]));
  return { name: "one head", W_query: beside("W_query"), W_key: beside("W_key"), W_value: beside("W_value") };
}

/** A picture that gets smaller on a narrow screen, without the margins for long words. @param {SVGElement} svg */
function scaling(svg) {
  svg.setAttribute("viewBox", `45 0 ${Number(svg.getAttribute("width")) - 90} ${svg.getAttribute("height")}`);
  svg.removeAttribute("height");
  return svg;
}
