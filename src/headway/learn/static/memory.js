// A matrix as it lies in memory: view and transpose change only how it is read.

import { h } from "../../explore/static/dom.js";
import { slider } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {{tokens: number, heads: number, features: number}} Sizes */
/**
 * A way to read the memory: the number at [i, j, ...] has the address i * strides[0] + j * strides[1] + ...
 * @typedef {{code: string, axes: string[], shape: number[], strides: number[]}} View
 */

/**
 * Options: tokens, heads, features, the sizes at first. While the figure is broken, the heads are
 * split by a view alone.
 * @param {Record<string, any>} options @param {Figure} figure
 */
export function draw(options, figure) {
  const { state } = figure;
  state.sizes ??= { tokens: options.tokens, heads: options.heads, features: options.features };
  state.address ??= options.heads * options.features + 1;
  const picture = h("div", { class: "views" });
  const place = h("div", { class: "row" });

  function update() {
    const { tokens, heads, features } = state.sizes;
    const cells = tokens * heads * features;
    state.address = Math.min(state.address, cells - 1);
    place.replaceChildren(slider("address", { least: 0, most: cells - 1, value: state.address }, light));
    picture.replaceChildren(...viewsOf(state.sizes, figure.broken).map((view) => drawn(view, state.sizes)));
    light(state.address);
  }

  /** Outline a number in all views and show its address. @param {number} address */
  function light(address) {
    state.address = address;
    for (const cell of picture.querySelectorAll(".cell")) cell.classList.toggle("lit", cell.getAttribute("data-address") === String(address));
    const [field, output] = place.querySelectorAll("input, output"); // the pointer may have chosen the number
    if (field instanceof HTMLInputElement) field.value = output.textContent = String(address);
    const last = /** @type {View} */ (viewsOf(state.sizes, figure.broken).at(-1));
    const [token, head, feature] = owner(address, state.sizes);
    const index = indexOf(address, last);
    const terms = index.map((at, axis) => `${at} · ${last.strides[axis]}`).join(" + ");
    figure.say([
      ["number at address", String(address)],
      ["belongs to", `token ${token}, head ${head}, feature ${feature}`],
      [`found in ${last.code} at`, `[${index.join(", ")}], because ${terms} = ${address}`],
      ...(figure.broken ? [/** @type {[string, string]} */ (["cells with a number of another token or head", `${misplaced(state.sizes)} of ${picture.querySelectorAll(".memory .cell").length}`])] : []),
    ]);
  }

  picture.addEventListener("pointerover", (event) => {
    const address = event.target instanceof Element && event.target.closest(".cell")?.getAttribute("data-address");
    if (address) light(Number(address));
  });
  update();
  return h("div", {},
    h("div", { class: "row" }, ["tokens", "heads", "features"].map((name) =>
      slider(name, { least: 1, most: 4, value: state.sizes[name] }, (size) => {
        state.sizes[name] = size;
        update();
      }))),
    place, picture);
}

/** The memory itself and the ways to read it. @param {Sizes} sizes @param {boolean} broken @returns {View[]} */
export function viewsOf({ tokens, heads, features }, broken) {
  const row = heads * features;
  const last = broken
    ? { code: `q.view(${heads}, ${tokens}, ${features})`, strides: [tokens * features, features, 1] }
    : { code: `q.view(${tokens}, ${heads}, ${features}).transpose(0, 1)`, strides: [features, row, 1] };
  return [
    { code: "q = x @ W_query", axes: ["token", "column"], shape: [tokens, row], strides: [row, 1] },
    { code: "memory", axes: ["address"], shape: [tokens * row], strides: [1] },
    { code: `q.view(${tokens}, ${heads}, ${features})`, axes: ["token", "head", "feature"], shape: [tokens, heads, features], strides: [row, features, 1] },
    { ...last, axes: ["head", "token", "feature"], shape: [heads, tokens, features] },
  ];
}

/** The token, the head and the feature of a number. @param {number} address @param {Sizes} sizes */
function owner(address, { heads, features }) {
  return [Math.floor(address / (heads * features)), Math.floor(address / features) % heads, address % features];
}

/** Where a view has an address. @param {number} address @param {View} view */
function indexOf(address, { shape, strides }) {
  return shape.map((size, axis) => Math.floor(address / strides[axis]) % size);
}

/** How many numbers a view without a transpose has in a wrong place. @param {Sizes} sizes */
function misplaced(sizes) {
  const view = /** @type {View} */ (viewsOf(sizes, true).at(-1));
  const addresses = Array.from({ length: sizes.tokens * sizes.heads * sizes.features }, (_, address) => address);
  return addresses.filter((address) => {
    const [head, token] = indexOf(address, view);
    const [right, of] = owner(address, sizes);
    return head !== of || token !== right;
  }).length;
}

/** A view: one grid of cells for each index of its first axis, if it has three. @param {View} view @param {Sizes} sizes */
function drawn(view, sizes) {
  const { code, axes, shape, strides } = view;
  const [rows, columns] = [shape.at(-2) ?? 1, /** @type {number} */ (shape.at(-1))];
  const blocks = shape.length === 3 ? shape[0] : 1;
  const wraps = shape.length === 1;
  return h("figure", { class: wraps ? "memory" : "view", "data-view": code },
    h("h3", {}, h("code", {}, code), h("span", { class: "shape" }, wraps ? " one row of numbers" : ` shape (${shape.join(", ")}), strides (${strides.join(", ")})`)),
    h("div", { class: "blocks" }, Array.from({ length: blocks }, (_, block) =>
      h("div", {},
        shape.length === 3 && h("h4", {}, `${axes[0]} ${block}`),
        h("div", { class: "cells", style: wraps ? {} : { "grid-template-columns": `repeat(${columns}, max-content)` } }, Array.from({ length: rows * columns }, (_, at) => {
          const index = [block, Math.floor(at / columns), at % columns].slice(3 - shape.length);
          return cell(index.reduce((sum, i, axis) => sum + i * strides[axis], 0), sizes);
        }))))));
}

/** @param {number} address @param {Sizes} sizes */
function cell(address, sizes) {
  const [token, head, feature] = owner(address, sizes);
  return h("span", { class: `cell head-${head}`, style: { "--token": `${18 + 14 * token}%` }, "data-address": address, title: `token ${token}, head ${head}, feature ${feature}` },
    address, h("small", {}, `t${token} h${head}`));
}
