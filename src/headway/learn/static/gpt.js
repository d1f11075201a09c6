// A complete GPT: the path from the text to the next token with its shapes and parameters, and what it writes.

import { h } from "../../explore/static/dom.js";
import { slider } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {{vocabulary: number, context: number, width: number, layers: number, heads: number}} Sizes */
/** @typedef {{name: string, does: string, shape: string, parameters: number, chapters?: [number, string][], inside?: Stage[], repeat?: number}} Stage */

/** The path, or with view = "samples" texts that were recorded during training. @param {Record<string, any>} options @param {Figure} figure */
export function draw(options, figure) {
  return options.view === "samples" ? samples(options, figure) : path(figure);
}

/** The path of the preset `modern` of models/gpt.py. @param {Sizes} sizes @returns {Stage[]} */
export function stages({ vocabulary, context, width, layers, heads }) {
  const hidden = Math.round((width * 8) / 3);
  const d = width / heads;
  const stream = `(batch, ${context}, ${width})`;
  const ofHeads = `(batch, ${heads}, ${context}, ${d})`;
  return [
    { name: "tokens", does: "the text as numbers", shape: `(batch, ${context})`, parameters: 0 },
    { name: "embedding", does: "one learned vector per token", shape: stream, parameters: vocabulary * width },
    { name: "block", does: "", shape: stream, parameters: 0, repeat: layers, inside: [
      { name: "norm", does: "every vector to one length", shape: stream, parameters: width },
      { name: "queries, keys, values", does: "three products, cut into heads", shape: `3 × ${ofHeads}`, parameters: 3 * width * width + 2 * d, chapters: [[4, "projections"], [8, "heads"], [9, "fused"]] },
      { name: "rotation", does: "by the position of the token", shape: ofHeads, parameters: 0, chapters: [[11, "positions"]] },
      { name: "scores", does: "dot products, divided by √d", shape: `(batch, ${heads}, ${context}, ${context})`, parameters: 0, chapters: [[2, "similarity"], [5, "scale"]] },
      { name: "mask", does: "no look at later tokens", shape: "", parameters: 0, chapters: [[6, "mask"], [10, "batches"]] },
      { name: "weights", does: "softmax", shape: `(batch, ${heads}, ${context}, ${context})`, parameters: 0, chapters: [[3, "softmax"], [7, "dropout"], [13, "online"]] },
      { name: "context", does: "weighted sums of the values", shape: ofHeads, parameters: 0, chapters: [[1, "bottleneck"], [12, "cache"]] },
      { name: "output", does: "all heads; added to the stream", shape: stream, parameters: width * width, chapters: [[9, "fused"]] },
      { name: "norm, MLP", does: "token by token; added too", shape: stream, parameters: width + 3 * width * hidden },
    ] },
    { name: "norm", does: "once more", shape: stream, parameters: width },
    { name: "logits", does: "compared with every token", shape: `(batch, ${context}, ${vocabulary})`, parameters: 0 },
    { name: "next token", does: "softmax of the last row", shape: "(batch)", parameters: 0, chapters: [[3, "softmax"]] },
  ];
}

/** All parameters. @param {Stage[]} all @returns {number} */
export function total(all) {
  return all.reduce((sum, { parameters, inside, repeat = 1 }) => sum + parameters + (inside ? repeat * total(inside) : 0), 0);
}

/** @param {Figure} figure */
function path(figure) {
  const { state } = figure;
  /** @type {Sizes} */
  const sizes = (state.sizes ??= { vocabulary: 65, context: 64, width: 128, layers: 4, heads: 4 }); // of the recipe char-cpu
  const place = h("div");
  const number = (/** @type {number} */ x) => x.toLocaleString("en");

  /** @param {Stage} stage @returns {HTMLElement} */
  function drawn({ name, does, shape, parameters, chapters = [], inside, repeat }) {
    if (inside) return h("li", { class: "block" }, h("h4", {}, `${repeat} blocks, each with ${number(total(inside))} parameters`), h("ol", {}, inside.map(drawn)));
    return h("li", { "data-stage": name },
      h("strong", {}, name), h("span", {}, does), h("span", { class: "shape" }, shape),
      h("span", { class: "shape" }, parameters ? `${number(parameters)} parameters` : ""),
      h("span", { class: "from" }, chapters.map(([at, chapter]) => h("a", { href: `#${chapter}`, title: `chapter ${at}, ${chapter}` }, at))));
  }
  function update() {
    const all = stages(sizes);
    const scores = sizes.layers * sizes.heads * sizes.context ** 2;
    place.replaceChildren(h("ol", { class: "path-list" }, all.map(drawn)));
    figure.say([["parameters", number(total(all))], ["weights of attention in one text", number(scores)]]);
  }
  const size = (/** @type {keyof Sizes} */ name, /** @type {number[]} */ values) =>
    slider(name, { least: 0, most: values.length - 1, value: values.indexOf(sizes[name]), shown: (i) => number(values[i]) }, (i) => { sizes[name] = values[i]; update(); });
  update();
  return h("div", {},
    h("div", { class: "row" }, size("vocabulary", [65, 1024, 50257]), size("context", [64, 256, 1024]), size("width", [64, 128, 256, 768]), size("layers", [1, 2, 4, 8, 12]), size("heads", [1, 2, 4])),
    place);
}

/** @param {Record<string, any>} options @param {Figure} figure */
function samples(options, figure) {
  const { state } = figure;
  /** @type {{step: number, loss: number, text: string}[]} */
  const stages = options.stages;
  state.at ??= stages.length - 1;
  const place = h("div");

  function update() {
    const { step, loss, text } = stages[figure.broken ? 0 : state.at];
    place.replaceChildren(h("pre", { class: "written" }, text));
    figure.say([["training steps", String(step)], ["validation loss", `${loss} nats per token`], ["as if it chose among", `${Math.exp(loss).toFixed(1)} characters`]]);
  }
  update();
  return h("div", {},
    h("div", { class: "row" }, figure.broken ? null : slider("Training steps", { least: 0, most: stages.length - 1, value: state.at, shown: (i) => String(stages[i].step) }, (i) => { state.at = i; update(); })), place);
}
