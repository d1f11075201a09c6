// Two ways to mask: -inf before the softmax, and 0 after it with a division by the sum.

import { h } from "../../explore/static/dom.js";
import { legend, matrix } from "../../explore/static/matrix.js";
import { pixels, short } from "../../explore/static/numbers.js";
import { book } from "./book.js";
import { divided, features, matrixOf, rowsOf, softmax, wordsOf } from "./compute.js";
import { part, readable, slider, withBook } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */

/**
 * Options: query and key, the row and the column of the score that a slider changes; the key is
 * after the query. While the figure is broken, the weights are not divided by their sum.
 * @param {Record<string, any>} options @param {Figure} figure
 */
export function draw({ query, key }, figure) {
  const words = wordsOf(book.sentence);
  const { scaled } = withBook(words.map(features));
  const { state } = figure;
  state.score ??= Math.round(10 * scaled.data[query * words.length + key]) / 10;
  const picture = h("div", { class: "shelf" });

  function update() {
    const scores = rowsOf(scaled);
    scores[query][key] = state.score;
    const width = pixels((figure.width - 160) / words.length, 31, 36);
    const before = scores.map((row, i) => softmax(row.map((score, j) => (j > i ? -Infinity : score))));
    const erased = scores.map((row, i) => softmax(row).map((weight, j) => (j > i ? 0 : weight)));
    const after = figure.broken ? erased : erased.map(divided);
    const ways = { "−∞ before the softmax": before, [`0 after the softmax${figure.broken ? "" : ", divided by the sum"}`]: after };
    picture.replaceChildren(...Object.entries(ways).map(([name, rows]) => {
      const cells = { width, height: 26, rowLabels: words, columnLabels: words, role: "weights" };
      const weights = readable(part(name, matrixOf(rows), { ...cells, scale: "share", most: 1, hatched: (i, j) => j > i }), figure);
      const sums = matrix(part("sums of the rows", matrixOf(rows.map((row) => [row.reduce((sum, x) => sum + x, 0)])), { ...cells, width: 38, rowLabels: null, columnLabels: ["sum"], most: Infinity }));
      weights.light(query, null);
      weights.element.addEventListener("pointerleave", () => weights.light(query, null));
      return h("figure", { "data-way": name }, h("h3", { class: "weights" }, name), h("div", { class: "beside-sums scroll" }, weights.element, sums.element));
    }));
    figure.say([[`weight of “${words[0]}” for “${words[query]}”`, `${short(before[query][0])} with −∞, ${short(after[query][0])} with 0 after the softmax`]]);
  }

  update();
  return h("div", { class: "masking" },
    h("div", { class: "row" }, slider(`score of “${words[key]}” for “${words[query]}”, which may not see it`, { least: -50, most: 80, value: Math.round(10 * state.score), shown: (x) => (x / 10).toFixed(1) }, (x) => {
      state.score = x / 10;
      update();
    })),
    picture, legend("share", 1, true));
}
