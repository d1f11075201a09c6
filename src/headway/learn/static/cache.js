// Generating token by token: what is computed in each step, with a cache of keys and values and without.

import { h, s } from "../../explore/static/dom.js";
import { times } from "../../explore/static/attention.js";
import { largest } from "../../explore/static/colours.js";
import { pixels, short } from "../../explore/static/numbers.js";
import { features, matrixOf, rowsOf, softmax, transpose } from "./compute.js";
import { difference, part, sentenceBox, slider, titled, withBook } from "./controls.js";
import { rotated } from "./positions.js";

/** @typedef {import("./figure.js").Figure} Figure */

const WORDS = 10; // the first words of a sentence

/** The cells of every step, or with view = "position" the step's weights with rotary positions. @param {Record<string, any>} options @param {Figure} figure */
export function draw(options, figure) {
  const { state } = figure;
  const sentence = sentenceBox(figure, options.text, WORDS, reset);
  const place = h("div");
  const steps = h("span");
  sentence.element.append(steps);

  function update() {
    const words = sentence.words();
    place.replaceChildren(...(!words.length ? [] : options.view === "position" ? position(words, figure) : cells(words, figure)));
  }
  /** As many steps as there are words. */
  function reset() {
    const most = Math.max(1, sentence.words().length);
    state.step = Math.min(state.step ?? 4, most);
    steps.replaceChildren(slider("Step", { least: 1, most, value: state.step }, (x) => { state.step = x; update(); }));
    update();
  }
  reset();
  return h("div", {}, sentence.element, place);
}

/** What is computed until a step: scores of allowed cells, and vectors of queries, keys and values. @param {number} step @param {boolean} cached */
export function work(step, cached) {
  const all = Array.from({ length: step }, (_, i) => i + 1);
  const scores = all.map((t) => (cached ? t : (t * (t + 1)) / 2));
  const vectors = all.map((t) => (cached ? 3 : 3 * t));
  const sum = (/** @type {number[]} */ numbers) => numbers.reduce((total, x) => total + x, 0);
  return { scores: scores[step - 1], vectors: vectors[step - 1], allScores: sum(scores), allVectors: sum(vectors), kept: cached ? 2 * step : 0 };
}

/** @param {string[]} words @param {Figure} figure */
function cells(words, figure) {
  const { state, broken } = figure;
  const { keys, values } = withBook(words.map(features));
  const size = pixels((figure.width - 120) / words.length, 18, 34); // pixels of a cell
  const held = (/** @type {string} */ name, /** @type {import("../../explore/static/trace.js").Matrix} */ matrix) => titled(part(name, matrix, {
    rowLabels: name === "keys" ? words : null, role: name, height: size, most: largest(matrix.data), hidden: (i) => i >= state.step,
    lit: { rows: [broken ? 0 : state.step - 1, state.step], columns: [0, matrix.columns] },
  }), figure, [words, null]);
  const row = (/** @type {string} */ name, /** @type {(x: ReturnType<typeof work>) => number} */ of) =>
    h("tr", {}, h("th", { scope: "row" }, name), [true, false].map((cached) => h("td", { "data-value": of(work(state.step, cached)), "aria-current": cached !== broken ? "true" : false }, of(work(state.step, cached)).toLocaleString("en"))));
  const table = h("table", { class: "numbers work" },
    h("thead", {}, h("tr", {}, h("td"), h("th", { scope: "col" }, "with a cache"), h("th", { scope: "col" }, "without"))),
    h("tbody", {},
      row("scores, this step", (x) => x.scores), row("scores so far", (x) => x.allScores),
      row("queries, keys and values, this step", (x) => x.vectors), row("queries, keys and values so far", (x) => x.allVectors),
      row("vectors kept in memory", (x) => x.kept)));
  const now = work(state.step, !broken);
  figure.say([["step", String(state.step)], ["scores in this step", String(now.scores)], ["vectors in this step", String(now.vectors)], ["vectors kept", String(now.kept)]]);
  return [
    h("div", { class: "shelf" },
      h("figure", {}, h("h3", { class: "weights" }, "scores ", h("span", { class: "shape" }, `step ${state.step}: the token “${words[state.step - 1]}”`)), grid(words, state.step, broken, size)),
      h("div", { class: "shelf joined" }, held("keys", keys), held("values", values)),
      table),
    h("p", { class: "legend" }, swatch("now"), " computed now ", swatch("again"), " computed again ", swatch("before"), " computed in an earlier step and not needed any more")];
}

/** The allowed cells of the scores, by when they are computed. @param {string[]} words @param {number} step @param {boolean} broken @param {number} size */
function grid(words, step, broken, size) {
  const text = { "font-size": 11, fill: "currentColor" };
  return s("svg", { class: "matrix steps-grid", width: 78 + words.length * size, height: words.length * size + 2, role: "img", "font-family": "system-ui, sans-serif", "aria-label": `step ${step}: ${work(step, !broken).scores} scores are computed` },
    words.map((word, i) => [
      s("text", { ...text, x: 70, y: (i + 0.5) * size + 4, "text-anchor": "end", opacity: i < step ? 1 : 0.4 }, word),
      ...words.map((_, j) => (j > i ? null : s("rect", { class: i >= step ? "later" : i === step - 1 ? "now" : broken ? "again" : "before", x: 76 + j * size, y: i * size, width: size - 2, height: size - 2 }))),
    ]));
}

/** @param {string} name */
function swatch(name) {
  return s("svg", { class: "steps-grid", width: 12, height: 12 }, s("rect", { class: name, width: 12, height: 12 }));
}

/**
 * The weights and the context of the newest token with rotary positions: from the whole text, and from a cache where
 * every new token gets the position `first(i)`. @param {string[]} words @param {(i: number) => number} first
 */
export function newest(words, first) {
  const { queries, keys, values } = withBook(words.map(features));
  const turned = (/** @type {import("../../explore/static/trace.js").Matrix} */ one) => rowsOf(one).map((row, i) => rotated(row, first(i)));
  const scores = times(matrixOf(turned(queries).slice(-1)), transpose(matrixOf(turned(keys))));
  const weights = matrixOf([softmax(rowsOf(scores)[0].map((score) => score / Math.sqrt(keys.columns)))]);
  return { weights, context: times(weights, values) };
}

/** @param {string[]} words @param {Figure} figure */
function position(words, figure) {
  const seen = words.slice(0, figure.state.step);
  const whole = newest(seen, (i) => i);
  const cached = newest(seen, figure.broken ? () => 0 : (i) => i);
  const width = pixels((figure.width - 105) / words.length, 22, 52);
  const narrow = figure.width < 500;
  const rows = (/** @type {"weights" | "context"} */ name, /** @type {object} */ look) =>
    titled(part(name === "weights" ? `weights of “${seen.at(-1)}”` : name, matrixOf([...rowsOf(whole[name]), ...rowsOf(cached[name])]), { rowLabels: name === "weights" || narrow ? ["whole", "cache"] : null, role: name, width, ...look }), figure, [["whole", "cache"], name === "weights" ? seen : null]);
  figure.say([["position of the newest token", String(figure.broken ? 0 : seen.length - 1)], ["largest difference of the context", short(difference(whole.context.data, cached.context.data))]]);
  return [h("div", { class: narrow ? "shelf" : "shelf joined" }, rows("weights", { columnLabels: seen, scale: "share", most: 1 }), rows("context", {}))];
}
