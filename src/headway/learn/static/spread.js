// How the spread of dot products grows with the number of features, and what the softmax makes of it.

import { hashed } from "../../explore/static/attention.js";
import { button, h, s } from "../../explore/static/dom.js";
import { short } from "../../explore/static/numbers.js";
import { softmax } from "./compute.js";
import { slider } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** The scores of all queries with all keys. @typedef {number[][]} Scores */

const [QUERIES, KEYS, MOST] = [64, 16, 512];
const SIZES = Array.from({ length: 10 }, (_, i) => 2 ** i); // of d_k
const [WIDTH, HEIGHT] = [300, 110];
const END = 64; // of the axis of scores

/** A number from a normal distribution with mean 0 and variance 1, by Box and Muller. @param {...number} place */
function normal(...place) {
  const [one, other] = [0, 1].map((which) => (hashed([...place, which]) + 2 ** 31 + 0.5) / 2 ** 32);
  return Math.sqrt(-2 * Math.log(one)) * Math.cos(2 * Math.PI * other);
}

/** The scores for each size of d_k: vectors are made longer, feature by feature. @param {number} seed @returns {Map<number, Scores>} */
export function scoresBySize(seed) {
  const scores = Array.from({ length: QUERIES }, () => Array(KEYS).fill(0));
  const sizes = new Map();
  for (let feature = 0; feature < MOST; feature++) {
    const keys = Array.from({ length: KEYS }, (_, j) => normal(seed, 1, j, feature));
    for (let i = 0; i < QUERIES; i++) {
      const query = normal(seed, 0, i, feature);
      for (let j = 0; j < KEYS; j++) scores[i][j] += query * keys[j];
    }
    if (SIZES.includes(feature + 1)) sizes.set(feature + 1, scores.map((row) => [...row]));
  }
  return sizes;
}

/**
 * The typical size of scores (the root of their mean square), the mean over all queries of the
 * largest weight, and of the gradient: the sum of w (1 - w) over the weights.
 * @param {Scores} scores @param {number} scale
 */
export function facts(scores, scale) {
  const flat = scores.flat();
  const weights = scores.map((row) => softmax(row.map((score) => score * scale)));
  const mean = (/** @type {number[]} */ numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;
  return {
    size: scale * Math.sqrt(mean(flat.map((score) => score ** 2))),
    largest: mean(weights.map((row) => Math.max(...row))),
    gradient: mean(weights.map((row) => row.reduce((sum, w) => sum + w * (1 - w), 0))),
  };
}

/**
 * Options: show, "scores" (histograms with and without the scale) or "weights" (of one query, and
 * the gradient; without the scale while the figure is broken).
 * @param {Record<string, any>} options @param {Figure} figure
 */
export function draw(options, figure) {
  const { state } = figure; // place: of d_k in SIZES; seed
  const seed = () => state.seed ?? 1;
  let sizes = scoresBySize(seed());
  const picture = h("div", { class: "pictures" });
  const place = () => state.place ?? 6;

  function update() {
    const size = SIZES[place()];
    const scores = /** @type {Scores} */ (sizes.get(size));
    const scaled = 1 / Math.sqrt(size);
    if (options.show === "weights") {
      const scale = figure.broken ? 1 : scaled;
      picture.replaceChildren(
        headed("Weights of one query on 16 keys", bars(softmax(scores[0].map((score) => score * scale)))),
        headed("Gradient of the softmax, by d_k", curves(sizes, size, figure.broken)));
      const { largest, gradient } = facts(scores, scale);
      figure.say([["d_k", String(size)], ["largest weight, mean of 64 queries", short(largest)], ["gradient, sum of w (1 − w)", short(gradient)]]);
    } else {
      picture.replaceChildren(histograms(scores.flat(), scaled, Math.min(figure.width, 820)));
      const [raw, divided] = [facts(scores, 1), facts(scores, scaled)];
      figure.say([["d_k", String(size)], ["√d_k", short(Math.sqrt(size))], ["typical score", short(raw.size)], ["typical score / √d_k", short(divided.size)]]);
    }
  }

  update();
  return h("div", { class: "spread" },
    h("div", { class: "row" },
      slider("d_k", { least: 0, most: SIZES.length - 1, value: place(), shown: (at) => String(SIZES[at]) }, (at) => { state.place = at; update(); }),
      button("Other random vectors", () => { state.seed = seed() + 1; sizes = scoresBySize(seed()); update(); })),
    picture);
}

/** @param {string} title @param {Element} drawing */
function headed(title, drawing) {
  return h("div", {}, h("h3", {}, title), drawing);
}

/** The scores above an axis, and the scores times the scale below it. @param {number[]} scores @param {number} scale @param {number} width */
function histograms(scores, scale, width) {
  const x = (/** @type {number} */ score) => (width * (score / END + 1)) / 2;
  const half = (/** @type {string} */ name, /** @type {string} */ kind, /** @type {number} */ factor, /** @type {1 | -1} */ up) => {
    const bin = factor / scale / 4; // the spread of the scores is 1 / scale
    const wide = x(bin) - x(0);
    const counts = new Map();
    for (const score of scores) counts.set(Math.floor((score * factor) / bin), (counts.get(Math.floor((score * factor) / bin)) ?? 0) + 1);
    const highest = Math.max(...counts.values());
    return s("g", { class: kind },
      [...counts].map(([at, count]) => s("rect", { x: x(at * bin), width: wide > 4 ? wide - 0.6 : wide, y: up > 0 ? HEIGHT * (1 - count / highest) : HEIGHT, height: (HEIGHT * count) / highest })),
      s("text", { class: "name", x: 0, y: HEIGHT - up * (HEIGHT - 14) }, name));
  };
  return s("svg", { class: "chart histograms", width, viewBox: `0 0 ${width} ${2 * HEIGHT + 18}`, role: "img", "aria-label": `histograms of ${scores.length} scores, and of the same divided by the root of d_k` },
    half("scores", "raw", 1, 1), half("scores / √d_k", "scaled", scale, -1),
    s("line", { x1: 0, x2: width, y1: HEIGHT, y2: HEIGHT }),
    [-1, -0.5, 0, 0.5, 1].map((at) => s("text", { x: x(at * END), y: 2 * HEIGHT + 14, "text-anchor": at === -1 ? "start" : at === 1 ? "end" : "middle" }, short(at * END))));
}

/** @param {number[]} weights */
function bars(weights) {
  const wide = WIDTH / weights.length;
  return s("svg", { class: "chart weights", viewBox: `0 0 ${WIDTH} ${HEIGHT + 18}`, role: "img", "aria-label": `weights: ${weights.map(short).join(", ")}` },
    weights.map((weight, i) => s("rect", { x: i * wide + 1, y: HEIGHT * (1 - weight), width: wide - 2, height: HEIGHT * weight, "data-value": weight })),
    s("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }),
    s("line", { class: "grid", x1: 0, x2: WIDTH, y1: 0.5, y2: 0.5 }), s("text", { x: 0, y: 12 }, "1"));
}

/** The gradient at each size of d_k. @param {Map<number, Scores>} sizes @param {number} size  marked @param {boolean} broken */
function curves(sizes, size, broken) {
  const x = (/** @type {number} */ one) => 12 + (Math.log2(one) / Math.log2(MOST)) * (WIDTH - 24);
  const y = (/** @type {number} */ gradient) => HEIGHT * (1 - gradient);
  const curve = (/** @type {boolean} */ scaled) => SIZES.map((one) => [one, facts(/** @type {Scores} */ (sizes.get(one)), scaled ? 1 / Math.sqrt(one) : 1).gradient]);
  const drawn = [true, false].map((scaled) => {
    const points = curve(scaled);
    const now = /** @type {number[]} */ (points.find(([one]) => one === size));
    return s("g", { class: `${scaled ? "scaled" : "raw"}${scaled === broken ? " faint" : ""}` },
      s("polyline", { points: points.map(([one, gradient]) => `${x(one)},${y(gradient)}`).join(" ") }),
      s("circle", { cx: x(now[0]), cy: y(now[1]), r: scaled === broken ? 0 : 5, "data-value": now[1] }),
      s("text", { x: WIDTH, y: y(points[SIZES.length - 1][1]) + (scaled ? 16 : -8), "text-anchor": "end" }, scaled ? "with 1/√d_k" : "without"));
  });
  return s("svg", { class: "chart lines", viewBox: `0 0 ${WIDTH} ${HEIGHT + 18}`, role: "img", "aria-label": "gradient of the softmax for d_k from 1 to 512" },
    drawn,
    s("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }),
    s("line", { class: "grid", x1: 0, x2: WIDTH, y1: 0.5, y2: 0.5 }), s("text", { x: 0, y: 12 }, "1"),
    SIZES.filter((_, i) => i % 3 === 0).map((one) => s("text", { x: x(one), y: HEIGHT + 14, "text-anchor": "middle" }, one)));
}
