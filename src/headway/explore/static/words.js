// What each step does, in a sentence, with its equation and the rung of the ladder that brings it.

import { short } from "./numbers.js";

/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./trace.js").Manifest} Manifest */
/** @typedef {{sentence: string, equation: string, rung: string | null}} Words */

/** @type {Record<string, Words>} */
const STEPS = {
  scores: {
    sentence: "Every query is compared with every key: their dot product says how well the two fit.",
    equation: "scores = queries keysᵀ", rung: "trainable",
  },
  scaled: {
    sentence: "Divided by the root of the features of a head, so that long vectors do not make the softmax all or nothing.",
    equation: "scaled = scores / √d_k", rung: "trainable",
  },
  capped: {
    sentence: "Large scores are bent smoothly below a cap.",
    equation: "capped = c tanh(scaled / c)", rung: null,
  },
  masked: {
    sentence: "What a query may not see, such as the tokens after it, gets −∞ before the softmax.",
    equation: "masked = scaled where allowed, else −∞", rung: "causal",
  },
  weights: {
    sentence: "The softmax makes shares of each row: none negative, together 1.",
    equation: "weights = exp(masked) / Σ exp(masked)", rung: "simplified",
  },
  dropped: {
    sentence: "While training, a random share p of the weights is 0 and the others grow by 1/(1−p). When the model writes, nothing is dropped.",
    equation: "dropped = weights / (1−p) with probability 1−p, else 0", rung: "dropout",
  },
  context: {
    sentence: "Each query takes the values, each in its share: what it found.",
    equation: "context = weights values", rung: "trainable",
  },
};

/** @param {string} step @param {Head} head @returns {Words} */
export function ofStep(step, head) {
  const { rung, inGPT, facts, steps } = head;
  if (facts?.additive && step === "scores") {
    return { sentence: "Every query is added to every key, bent by tanh, and weighed feature by feature by a vector v that was learnt: Bahdanau's score.", equation: "score = v · tanh(query + key)", rung: null };
  }
  if (rung === "fixed" && step === "scores") {
    return { sentence: "On this rung scores come from positions alone: half as much with every step away.", equation: "scores = 2^−|i−j|", rung };
  }
  const prefix = inGPT && !facts ? " In a GPT the row ends at the token itself: it sees no later one." : "";
  if (rung === "fixed" && step === "weights") {
    return { sentence: `Each row is divided by its sum, so that it makes shares.${prefix}`, equation: "weights = scores / Σ scores", rung };
  }
  if (rung === "simplified" && step === "scores") {
    return { sentence: "On this rung the inputs are queries, keys and values at once.", equation: "scores = x xᵀ", rung };
  }
  if (step === "scaled" && facts && Math.abs(facts.scale - width(head) ** -0.5) > 1e-9) {
    return { ...STEPS.scaled, sentence: "Multiplied by the scale that was given.", equation: `scaled = ${short(facts.scale)} scores` };
  }
  if (step === "weights") {
    const before = steps[steps.indexOf("weights") - 1] ?? "scores";
    if (facts && facts.normalizer !== "softmax") {
      return { sentence: `The ${facts.normalizer} makes shares of each row.`, equation: `weights = ${facts.normalizer}(${before})`, rung: null };
    }
    const { sentence } = STEPS.weights;
    return { ...STEPS.weights, sentence: sentence + prefix, equation: `weights = exp(${before}) / Σ exp(${before})` };
  }
  return STEPS[step];
}

/** Features of a query. @param {Head} head */
function width(head) {
  return head.trace.shapes.get(head.name("queries"))?.at(-1) ?? 1;
}

/** @param {Head} head @param {number} heads @param {Manifest} manifest @returns {Words} */
export function ofLayer(head, heads, { kind, model }) {
  const { rung } = head;
  if (kind === "translation") return { sentence: "Queries of the words at the left of a picture meet keys of those above it: press a head for its steps.", equation: "context = weights values", rung: null };
  if (kind === "trace") return { sentence: "What was traced of this attention: press a head for its steps.", equation: "context = weights values", rung: null };
  const mlp = "Then the MLP adds what it makes of each token alone.";
  const equation = "x + attention(norm(x)),  then  x + mlp(norm(x))";
  if (rung === "fixed") return { sentence: `The stream is normed, and each token gets the average of itself and those before it, by fixed weights. ${mlp}`, equation, rung };
  if (rung === "simplified") return { sentence: `The stream is normed, and each token gets the average of itself and those before it, by how alike they are. ${mlp}`, equation, rung };
  const split = heads > 1 ? ", a part for each head" : "";
  const norm = model?.qk_norm ? "; queries and keys are normed (QK-norm)" : "";
  const turned = model?.positions === "rotary" ? "; queries and keys are turned by their positions (rotary)" : "";
  const back = head.trace.shapes.has(`${head.attention}.output`) ? "projected back and " : "";
  const contexts = heads > 1 ? "the heads' contexts, side by side, are" : "the context is";
  return { sentence: `The stream is normed and projected to queries, keys and values${split}${norm}${turned}. Each head attends; ${contexts} ${back}added to the stream. ${mlp}`, equation, rung };
}

/** @type {Record<string, string>} */
export const EDITS = {
  off: "this head says nothing (its context is 0)",
  "no scale": "scores are not scaled",
  "no mask": "no mask: later tokens are seen",
  uniform: "weights: all alike",
  identity: "weights: itself alone",
  previous: "weights: the token before",
};
