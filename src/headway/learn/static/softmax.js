// Scores as sliders, and the weights that softmax, sparsemax and argmax make of them.

import { button, h } from "../../explore/static/dom.js";
import { times } from "../../explore/static/attention.js";
import { short } from "../../explore/static/numbers.js";
import { book } from "./book.js";
import { divided, matrixOf, rowsOf, softmax, sparsemax, transpose, wordsOf } from "./compute.js";

/** @typedef {import("./figure.js").Figure} Figure */

const MOST = 8; // the largest score of a slider; the buttons go on
const LIMIT = 1e6; // of the buttons

/**
 * Options: scores, one per word of the sentence; by default the dot products of the word `query`
 * (counted from 0) with all words. remove: "exp", if the figure can be broken.
 * @param {Record<string, any>} options @param {Figure} figure
 */
export function draw(options, figure) {
  const { state } = figure; // scores, masked
  const words = wordsOf(book.sentence);
  const x = matrixOf(book.inputs);
  /** @type {number[]} */
  const scores = state.scores ?? [...(options.scores ?? rowsOf(times(x, transpose(x)))[options.query ?? 1])];
  /** @type {boolean[]} */
  const masked = state.masked ?? words.map(() => false);
  const title = figure.broken ? "score / sum" : "softmax";
  const rows = words.map((word, i) => row(word, i));
  const powers = h("th", { scope: "col" });
  const sums = ["exp", "softmax", "sparsemax", "argmax"].map((name) => h("td", { "data-sum": name }));
  const moves = [
    button("Add 1 to all", () => all((score) => score + 1)),
    button("Double all", () => all((score) => 2 * score)),
    button("Halve all", () => all((score) => score / 2)),
  ];

  /** @param {string} word @param {number} i */
  function row(word, i) {
    const slider = /** @type {HTMLInputElement} */ (h("input", {
      type: "range", min: -MOST, max: MOST, step: 0.01, value: scores[i], "aria-label": `score of ${word}`,
      oninput: () => { scores[i] = Number(slider.value); changed(); },
    }));
    const hide = /** @type {HTMLInputElement} */ (h("input", { type: "checkbox", checked: masked[i], onchange: () => { masked[i] = hide.checked; changed(); } }));
    const [score, power] = [h("output", {}), h("span", { class: "number" })];
    const kinds = ["softmax", "sparsemax", "argmax"].map((name) => ({ name, fill: h("span", { class: `fill ${name}` }), number: h("span", { class: "number" }) }));
    const element = h("tr", {},
      h("th", { scope: "row" }, word),
      h("td", {}, h("div", { class: "score" }, slider, score, h("label", { class: "note" }, hide, " −∞"))),
      h("td", {}, power),
      kinds.map(({ name, fill, number }) => h("td", { "data-kind": name }, h("div", { class: "weight" }, h("span", { class: "name" }, name === "softmax" ? title : name), h("span", { class: "track" }, fill), number))));
    return { element, slider, score, power, kinds };
  }

  /** @param {(score: number) => number} change */
  function all(change) {
    if (scores.some((score) => Math.abs(change(score)) > LIMIT)) return;
    scores.forEach((score, i) => { scores[i] = change(score); });
    changed();
  }

  function changed() {
    Object.assign(state, { scores, masked });
    update();
  }

  function update() {
    const given = scores.map((score, i) => (masked[i] ? -Infinity : score));
    const add = (/** @type {number[]} */ numbers) => numbers.reduce((a, b) => a + b, 0);
    const most = Math.max(...given);
    const best = given.indexOf(most);
    const shift = add(given.map(Math.exp)) === Infinity ? most : 0; // exponentials that are too large for a computer
    const parts = given.map((score) => (figure.broken ? (score === -Infinity ? 0 : score) : Math.exp(score - shift)));
    powers.textContent = figure.broken ? "score" : shift ? "exp(score − largest)" : "exp(score)";
    /** @type {Record<string, number[]>} */
    const weights = {
      softmax: figure.broken ? divided(parts) : softmax(given),
      sparsemax: sparsemax(given),
      argmax: given.map((_, i) => (i === best && most > -Infinity ? 1 : 0)),
    };
    const longest = Math.max(1, ...weights.softmax.map(Math.abs)); // "weights" without exp may be above 1
    rows.forEach(({ slider, score, power, kinds }, i) => {
      slider.value = String(scores[i]);
      slider.disabled = masked[i];
      score.textContent = short(given[i]);
      power.textContent = short(parts[i]);
      for (const { name, fill, number } of kinds) {
        const weight = weights[name][i];
        fill.style.width = `${(100 * Math.abs(weight)) / (name === "softmax" ? longest : 1)}%`;
        fill.classList.toggle("negative", weight < 0);
        number.textContent = short(weight);
        number.dataset.value = String(weight);
      }
    });
    const sum = add(parts);
    for (const cell of sums) cell.textContent = short(add(weights[cell.dataset.sum ?? ""] ?? parts));
    figure.say([
      [figure.broken ? "sum of the scores" : shift ? "sum of exp(score − largest)" : "sum of the exponentials", short(sum)],
      [`weight of ${words[best]}`, `${short(parts[best])} / ${short(sum)} = ${short(weights.softmax[best])}`],
      ["largest − smallest weight", short(Math.max(...weights.softmax) - Math.min(...weights.softmax))],
    ]);
  }

  update();
  return h("div", { class: "softmax" },
    h("table", { class: figure.width < 640 ? "narrow" : "" },
      h("thead", {}, h("tr", {}, ["", "score"].map(head), powers, [title, "sparsemax", "argmax"].map(head))),
      h("tbody", {}, rows.map(({ element }) => element)),
      h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "sum"), h("td", {}), sums))),
    h("div", { class: "row" }, moves));
}

/** @param {string} text */
function head(text) {
  return h("th", { scope: "col" }, text);
}
