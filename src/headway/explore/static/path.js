// The complete path of a head, as a picture in which every step can be opened.

import { h } from "./dom.js";
import { short } from "./numbers.js";
import { largest } from "./colours.js";
import { pooled, thumbnail } from "./matrix.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./matrix.js").Part} Part */

const FEATURES = /queries$|keys$|values$|^(x|context|output|stream)$/;

/** Whether the columns of a step are features, not keys. @param {string} step */
export function hasFeatures(step) {
  return FEATURES.test(step);
}

/** The name of a step on the page: the queries and keys have several. @param {Head} head @param {string} step */
export function label(head, step) {
  const role = /** @type {string} */ (step.split("_").at(-1));
  if (!["queries", "keys"].includes(role)) return step === "next" ? "next token" : step;
  const chain = head.chain(role);
  if (chain.indexOf(step) <= 0) return role;
  return step === role && chain.includes(`unrotated_${role}`) ? `${role}, rotated` : `${role}, normalized`;
}

/** What makes a step from the one before it, for the arrow. @param {Head} head @param {string} step */
function operation(head, step) {
  const { softcap } = head.facts ?? {};
  const scale = head.facts?.scale ?? (head.trace.shapes.get(head.name("queries"))?.at(-1) ?? 1) ** -0.5;
  const root = Math.round(1 / scale ** 2);
  const matrix = { queries: "W_Q", keys: "W_K", values: "W_V" }[/** @type {string} */ (step.split("_").at(-1))];
  const part = label(head, step).split(", ")[1];
  if (matrix) return part ? { rotated: "rotary", normalized: "norm" }[part] : head.chain("queries").length ? `× ${matrix}` : "";
  return {
    scores: head.rung === "fixed" ? "distance" : head.facts?.additive ? "v · tanh" : "q · k", scaled: Math.abs(1 / scale ** 2 - root) < 1e-6 ? `/ √${root}` : `× ${short(scale)}`,
    capped: `${short(softcap ?? 0)} tanh`, masked: "mask", weights: head.facts?.normalizer ?? (head.rung === "fixed" ? "/ sum" : "softmax"), dropped: "dropout",
    context: "× values", output: head.trace.has(head.name("W_output")) ? "× W_O" : "", stream: "+ stream", next: "all layers",
  }[step] ?? "";
}

/**
 * The steps as tiles, in lanes: the queries, the keys and the values, then the rest.
 * @param {App} app @param {Head} head @param {string[]} steps @param {string} current @param {Map<string, Part>} parts
 * @param {string | null} next  the most likely next token
 */
export function pathView(app, head, steps, current, parts, next) {
  const size = (/** @type {string} */ step) => parts.get(step)?.size?.join("×") ?? "";
  const tile = (/** @type {string} */ step) => {
    const part = parts.get(step);
    const small = part && (hasFeatures(step) ? pooled(part, 24, 48) : part);
    return h("a", { href: app.address({ step, cell: null }), "aria-current": step === current ? "step" : false, class: "tile" },
      small ? thumbnail(small, part.scale, hasFeatures(step) ? largest(small.data) || 1 : part.most, part.hatched && ((i, j) => /** @type {any} */ (part.hatched)(part.first[0] + i, part.first[1] + j)))
        : h("span", { class: "token" }, next ?? "…"),
      h("span", { class: /(queries|keys|values)$/.exec(step)?.[1] ?? "" }, label(head, step)));
  };
  const lane = (/** @type {string[]} */ names, /** @type {string | null} */ before) =>
    h("ol", { class: "lane" }, names.map((step, i) => {
      const from = i ? names[i - 1] : before;
      return h("li", {}, from != null && h("span", { class: "flow-arrow", title: "the operation and the shape of its input" }, h(head.edits(step).length ? "s" : "span", {}, operation(head, step)), h("span", { class: "line", "aria-hidden": "true" }), h("span", { class: "shape" }, size(from))), tile(step));
    }));
  const chains = ["queries", "keys", "values"].map((role) => head.chain(role).filter((step) => steps.includes(step))).filter((chain) => chain.length);
  const rest = steps.filter((step) => step !== "x" && !chains.flat().includes(step));
  const inputs = steps.includes("x") ? "x" : null;
  return h("nav", { class: "path", "aria-label": "steps of this head" },
    (inputs || chains.length > 0) && h("div", { class: "lanes" }, inputs && tile(inputs), h("div", {}, chains.map((chain) => lane(chain, inputs)))),
    lane(rest, chains.length ? "queries" : inputs));
}

