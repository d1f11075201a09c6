// What a model attends to that was trained with or without the causal mask, recorded by lab/leak.py.

import { h } from "../../explore/static/dom.js";
import { legend, matrix } from "../../explore/static/matrix.js";
import { pixels, short } from "../../explore/static/numbers.js";
import { matrixOf } from "./compute.js";
import { part } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */

/**
 * Options: recorded, of leak.json. While the figure is broken, the weights are those of the model
 * without the mask.
 * @param {Record<string, any>} options @param {Figure} figure
 */
export function draw({ recorded }, figure) {
  const letters = [...recorded.text].map((letter) => (letter === " " ? "␣" : letter));
  /** @type {number[][]} */
  const weights = recorded[figure.broken ? "trainable, no mask" : "causal"];
  const width = pixels((figure.width - 110) / letters.length, 20, 36);
  const drawn = matrix(part("weights", matrixOf(weights), {
    rowLabels: letters, columnLabels: letters, scale: "share", most: 1, width, height: 26, role: "weights",
    hatched: figure.broken ? undefined : (i, j) => j > i,
    onhover: (cell) => figure.point(cell && [["token", letters[cell[0]]], ["reads", letters[cell[1]]], ["weight", short(weights[cell[0]][cell[1]])]]),
  }));
  const cells = drawn.element.querySelectorAll(":scope > g > rect");
  letters.slice(1).forEach((_, i) => cells[i * letters.length + i + 1].classList.add("target"));

  const next = weights.slice(0, -1).map((row, i) => row[i + 1]);
  figure.say([["weight on the next character, which the token should predict", figure.broken ? `${short(Math.min(...next))} to ${short(Math.max(...next))}` : "not allowed"]]);
  return h("div", { class: "leak" },
    h("div", { class: "scroll" }, drawn.element),
    legend("share", 1, true),
    h("p", { class: "note" }, h("span", { class: "target-key" }), " outlined: the next character, which the token in this row should predict"));
}
