// Dropout on the weights of a sentence: one random draw, and the mean over many draws.

import { button, h } from "../../explore/static/dom.js";
import { kept } from "../../explore/static/attention.js";
import { legend } from "../../explore/static/matrix.js";
import { pixels, short } from "../../explore/static/numbers.js";
import { features, matrixOf, rowsOf } from "./compute.js";
import { difference, part, sentenceBox, slider, titled, withBook } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {import("./compute.js").Matrix} Matrix */

const DRAWS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
const WORDS = 8; // the first words of a sentence
const LABELS = 215; // pixels of the labels and the gaps of three matrices in a row

/**
 * Options: rate, seed and text at first. While the figure is broken, the weights that survive are
 * not divided by 1 - rate.
 * @param {Record<string, any>} options @param {Figure} figure
 */
export function draw(options, figure) {
  const state = /** @type {{rate: number, seed: number, draws: number}} */ (figure.state);
  state.rate ??= options.rate ?? 0.5;
  state.seed ??= options.seed ?? 123;
  state.draws ??= DRAWS.indexOf(options.draws ?? 1);
  const sentence = sentenceBox(figure, options.text, WORDS, update);
  const picture = h("div", { class: "shelf" });
  const seed = h("output", {});
  const another = (/** @type {number} */ by) => {
    state.seed += by;
    update();
  };

  function update() {
    const words = sentence.words();
    if (!words.length) return picture.replaceChildren();
    const { weights } = withBook(words.map(features), "causal");
    const dropped = drop(weights, state, figure.broken);
    const mean = meanOf(weights, state.rate, DRAWS[state.draws], figure.broken);
    const rows = words.length;
    const matrices = { weights, dropped, mean };
    const titles = { weights: "weights", dropped: `dropped, seed ${state.seed}`, mean: `mean over ${DRAWS[state.draws] === 1 ? "1 draw" : `${DRAWS[state.draws]} draws`}` };
    const inOneRow = figure.width > LABELS + 3 * rows * 31;
    picture.replaceChildren(...Object.entries(matrices).map(([name, matrix], at) => titled(part(name, matrix, {
      title: titles[/** @type {keyof typeof titles} */ (name)], role: name === "mean" ? "weights" : name, rowLabels: at && inOneRow ? null : words, columnLabels: words,
      scale: "share", most: 1, width: inOneRow ? pixels((figure.width - LABELS) / 3 / rows, 31, figure.large ? 44 : 38) : pixels((figure.width - 110) / rows, 22, 38), hatched: (i, j) => j > i,
    }), figure, [words, words])));
    seed.textContent = `seed ${state.seed}`;
    const sum = (/** @type {Matrix} */ one) => short(rowsOf(one)[rows - 1].reduce((total, x) => total + x, 0));
    const pairs = (rows * (rows + 1)) / 2;
    const survived = rowsOf(weights).flatMap((row, i) => row.filter((_, j) => j <= i && kept(state, [0, 0, i, j]))).length;
    figure.say([
      ["this draw keeps", `${survived} of ${pairs} weights`],
      [`sum of the last row, “${words[rows - 1]}”`, `${sum(weights)} before, ${sum(dropped)} in this draw, ${sum(mean)} in the mean`],
      ["largest difference between the mean and the weights", short(difference(mean.data, weights.data))],
    ]);
  }

  update();
  return h("div", { class: "dropout" },
    h("div", { class: "row" },
      slider("dropout rate", { least: 0, most: 9, value: Math.round(10 * state.rate), shown: (x) => (x / 10).toFixed(1) }, (x) => {
        state.rate = x / 10;
        update();
      }),
      slider("draws in the mean", { least: 0, most: DRAWS.length - 1, value: state.draws, shown: (x) => String(DRAWS[x]) }, (x) => {
        state.draws = x;
        update();
      })),
    h("div", { class: "row" },
      button("◀ seed", () => another(-1), { "aria-label": "previous seed" }), button("draw again", () => another(1)), seed),
    sentence.element, picture, legend("share", 1, true));
}

/** One draw: the same cells as `attention/dropout.py` drops. @param {Matrix} weights @param {{rate: number, seed: number}} training @param {boolean} broken @returns {Matrix} */
function drop(weights, { rate, seed }, broken) {
  const scale = broken ? 1 : 1 - rate;
  return matrixOf(rowsOf(weights).map((row, i) => row.map((weight, j) => (kept({ rate, seed }, [0, 0, i, j]) ? weight / scale : 0))));
}

/** The mean over the draws with seeds 0, 1, ... @param {Matrix} weights @param {number} rate @param {number} draws @param {boolean} broken @returns {Matrix} */
function meanOf(weights, rate, draws, broken) {
  const data = new Float64Array(weights.rows * weights.columns);
  for (let seed = 0; seed < draws; seed++) drop(weights, { rate, seed }, broken).data.forEach((x, at) => (data[at] += x / draws));
  return { ...weights, data };
}
