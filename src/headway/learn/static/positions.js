// How the place of a token reaches attention: a sentence in two orders, and rotary positions.

import { h, s } from "../../explore/static/dom.js";
import { times } from "../../explore/static/attention.js";
import { largest } from "../../explore/static/colours.js";
import { pixels, short } from "../../explore/static/numbers.js";
import { pairs } from "../../explore/static/rotary.js";
import { features, matrixOf, rowsOf, softmax, transpose } from "./compute.js";
import { choice, difference, list, part, sentenceBox, slider, titled, withBook } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {import("../../explore/static/trace.js").Matrix} Matrix */
/** @typedef {"none" | "added" | "alibi" | "relative" | "rotary"} Scheme */

const SCHEMES = {
  added: "vectors that are added (sinusoidal)", alibi: "a bias by distance (ALiBi)",
  relative: "a bias by signed distance (relative)", rotary: "rotations (RoPE)",
};
const SLOPE = 0.5; // of ALiBi
const TABLE = [-0.6, -0.2, 0.4, 0.8, 0.1, -0.3, -0.7]; // a bias for each distance, as training could find it
const FARTHEST = 24;
const WORDS = 6; // the first words of a sentence

/** Two orders of a sentence, or with view = "rotary" the dials. @param {Record<string, any>} options @param {Figure} figure */
export function draw(options, figure) {
  return options.view === "rotary" ? rotary(options, figure) : order(options, figure);
}

/** Sinusoidal positions (Vaswani et al. 2017): sines in the even columns, cosines in the odd ones. @param {number} tokens @param {number} dim */
export function sinusoidal(tokens, dim) {
  return Array.from({ length: tokens }, (_, position) => Array.from({ length: dim }, (_, c) => {
    const angle = position / 10000 ** ((2 * Math.floor(c / 2)) / dim);
    return c % 2 ? Math.cos(angle) : Math.sin(angle);
  }));
}

/** The angle of every pair of features per position: theta^(-2i/d). @param {number} dim @param {number} [theta] */
export function frequencies(dim, theta = 10000) {
  return Array.from({ length: dim / 2 }, (_, i) => theta ** ((-2 * i) / dim));
}

/** A row, rotated by its position; pair i consists of the features i and i + d/2 (Su et al. 2021). @param {number[]} row @param {number} position */
export function rotated(row, position) {
  const half = row.length / 2;
  const angles = frequencies(row.length).map((frequency) => position * frequency);
  return [
    ...angles.map((angle, i) => row[i] * Math.cos(angle) - row[i + half] * Math.sin(angle)),
    ...angles.map((angle, i) => row[i + half] * Math.cos(angle) + row[i] * Math.sin(angle)),
  ];
}

/** The bias of a score. @param {Scheme} scheme @param {number} query @param {number} key */
export function bias(scheme, query, key) {
  if (scheme === "alibi") return -SLOPE * Math.abs(query - key);
  const reach = (TABLE.length - 1) / 2;
  return scheme === "relative" ? TABLE[Math.max(-reach, Math.min(reach, key - query)) + reach] : 0;
}

/** Attention without a mask over words in this order. @param {string[]} words @param {Scheme} scheme */
export function contexts(words, scheme) {
  const places = sinusoidal(words.length, 4); // one column too many, because it must be even
  const x = words.map((word, i) => features(word).map((number, c) => number + (scheme === "added" ? places[i][c] : 0)));
  const { queries, keys, values } = withBook(x);
  const turned = (/** @type {Matrix} */ one) => (scheme === "rotary" ? matrixOf(rowsOf(one).map(rotated)) : one);
  const scores = rowsOf(times(turned(queries), transpose(turned(keys)))).map((row, i) => row.map((score, j) => score / Math.sqrt(keys.columns) + bias(scheme, i, j)));
  const weights = matrixOf(scores.map(softmax));
  return { weights, context: times(weights, values) };
}

/** @param {Record<string, any>} options @param {Figure} figure */
function order(options, figure) {
  const { state } = figure;
  state.scheme ??= options.scheme ?? "added";
  const place = h("div");
  const sentence = sentenceBox(figure, options.text, WORDS, update);

  function update() {
    const words = sentence.words();
    const scheme = figure.broken ? "none" : state.scheme;
    const back = [...words].reverse();
    if (!words.length) return place.replaceChildren();
    const [one, other] = [words, back].map((order) => contexts(order, scheme));
    const room = figure.width > 720 ? figure.width / 2 - 20 : figure.width; // the two orders next to each other
    const width = pixels((room - 112) / (words.length + 2), 31, 44);
    const most = largest([...one.context.data, ...other.context.data]) || 1;
    place.replaceChildren(h("div", { class: "orders" }, [{ order: words, ...one }, { order: back, ...other }].map(({ order, weights, context }) => h("div", {},
      h("p", {}, h("strong", {}, order.join(" "))),
      h("div", { class: "shelf joined" },
        titled(part("weights", weights, { rowLabels: order, columnLabels: order, scale: "share", most: 1, role: "weights", width }), figure),
        titled(part("context", context, { role: "context", most, width }), figure, [order, null]))))), describe(words.length, scheme));
    const [first, last] = [rowsOf(one.context)[0], rowsOf(other.context)[words.length - 1]];
    figure.say([[`context of “${words[0]}” as the first word`, list(first)], ["as the last word", list(last)], ["difference", short(difference(first, last))]]);
  }

  /** What a scheme adds or rotates. @param {number} tokens @param {Scheme} scheme */
  function describe(tokens, scheme) {
    const range = Array.from({ length: tokens }, (_, i) => String(i));
    if (scheme === "none") return h("p", { class: "note" }, "Nothing says where a word is.");
    if (scheme === "added") return titled(part("added to the words", matrixOf(sinusoidal(tokens, 4).map((row) => row.slice(0, 3))), { rowLabels: range.map((i) => `place ${i}`) }), figure);
    if (scheme === "rotary") return titled(part("angle of the rotation, in degrees", matrixOf(range.map((i) => [(Number(i) * 180) / Math.PI])), { rowLabels: range.map((i) => `place ${i}`), role: "queries" }), figure);
    return titled(part("added to the scores", matrixOf(range.map((_, i) => range.map((_, j) => bias(scheme, i, j)))), { rowLabels: range.map((i) => `query ${i}`), columnLabels: range.map((i) => `key ${i}`) }), figure);
  }

  update();
  if (!figure.broken) sentence.element.append(choice("Positions as", SCHEMES, state.scheme, (value) => { state.scheme = value; update(); }));
  return h("div", {}, sentence.element, place);
}

/** The score of a query and a key at two positions, and the share of each pair of features. @param {number[]} query @param {number[]} key @param {number} m @param {number} n */
export function score(query, key, m, n) {
  const [one, other] = [rotated(query, m), rotated(key, n)];
  const half = query.length / 2;
  const terms = Array.from({ length: half }, (_, i) => one[i] * other[i] + one[i + half] * other[i + half]);
  return { query: one, key: other, terms, total: terms.reduce((sum, x) => sum + x, 0) };
}

/** @param {Record<string, any>} options @param {Figure} figure */
function rotary(options, figure) {
  const { state } = figure;
  state.key ??= 2;
  state.distance ??= 3;
  const place = h("div");

  function update() {
    const [m, n] = figure.broken ? [0, 0] : [state.key + state.distance, state.key];
    const now = score(options.query, options.key, m, n);
    const dials = (/** @type {string} */ role, /** @type {number[]} */ before, /** @type {number[]} */ after, /** @type {number} */ position) =>
      h("figure", { class: "dials" }, h("h3", { class: role }, role === "queries" ? `query at position ${position}` : `key at position ${position}`), pairs(matrixOf([before]), matrixOf([after]), 0, role));
    place.replaceChildren(
      h("div", { class: "shelf" }, dials("queries", options.query, now.query, state.key + state.distance), dials("keys", options.key, now.key, state.key)),
      h("div", { class: "scroll" }, h("table", { class: "numbers" },
        h("thead", {}, h("tr", {}, h("td"), now.terms.map((_, i) => h("th", { scope: "col" }, `pair ${i}`)), h("th", { scope: "col" }, "sum"))),
        h("tbody", {}, h("tr", {}, h("th", { scope: "row" }, "score"), [...now.terms, now.total].map((x) => h("td", { "data-value": x }, short(x))))))),
      curve(options, state.distance, figure));
    figure.say([["query at", String(state.key + state.distance)], ["key at", String(state.key)], ["distance", String(state.distance)], ["score", short(now.total)]]);
  }
  update();
  return h("div", {},
    h("div", { class: "row" },
      slider("Slide both: position of the key", { least: 0, most: FARTHEST, value: state.key }, (x) => { state.key = x; update(); }),
      slider("Distance from key to query", { least: 0, most: FARTHEST, value: state.distance }, (x) => { state.distance = x; update(); })),
    place);
}

/** The score at every distance. @param {Record<string, any>} options @param {number} distance @param {Figure} figure */
function curve({ query, key }, distance, { broken, width }) {
  const scores = Array.from({ length: FARTHEST + 1 }, (_, d) => score(query, key, broken ? 0 : d, 0).total);
  const [low, high] = [Math.min(0, ...scores), Math.max(0, ...scores)];
  const step = Math.max(8, Math.min(20, (width - 60) / FARTHEST)); // pixels
  const x = (/** @type {number} */ d) => 40 + d * step;
  const y = (/** @type {number} */ value) => 12 + (100 * (high - value)) / (high - low || 1);
  const text = { "font-size": 11, fill: "currentColor", opacity: 0.75 };
  return h("div", { class: "scroll" }, s("svg", { class: "matrix", width: x(FARTHEST) + 10, height: 146, role: "img", "aria-label": `score by distance: ${scores.map(short).join(", ")}`, "font-family": "system-ui, sans-serif" },
    s("line", { x1: x(0), x2: x(FARTHEST), y1: y(0), y2: y(0), stroke: "var(--line)" }),
    s("text", { ...text, x: 34, y: y(high) + 4, "text-anchor": "end" }, short(high)),
    s("text", { ...text, x: 34, y: y(low) + 4, "text-anchor": "end" }, short(low)),
    s("polyline", { points: scores.map((value, d) => `${x(d)},${y(value)}`).join(" "), fill: "none", stroke: "var(--weights)", "stroke-width": 2 }),
    s("circle", { cx: x(distance), cy: y(scores[distance]), r: 5, fill: "var(--weights)" }),
    [0, 6, 12, 18, 24].map((d) => s("text", { ...text, x: x(d), y: 128, "text-anchor": "middle" }, d)),
    s("text", { ...text, x: x(12), y: 143, "text-anchor": "middle" }, broken ? "distance" : "distance: the score depends on nothing else")));
}
