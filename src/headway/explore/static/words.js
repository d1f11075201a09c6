// What each step does, in a sentence, with its equation and the rung of the ladder that introduces it.

import { short } from "./numbers.js";
import { label } from "./path.js";

/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./trace.js").Manifest} Manifest */
/** @typedef {{sentence: string, equation: string, rung: string | null}} Words */

/** @type {Record<string, Words>} */
const STEPS = {
  x: {
    sentence: "The vectors that this attention reads, one row per token: the residual stream after the norm of the layer.",
    equation: "x = norm(stream)", rung: null,
  },
  queries: {
    sentence: "The query of a token, what it looks for: its vector times the learned matrix of this head.",
    equation: "queries = x W_query", rung: "trainable",
  },
  keys: {
    sentence: "The key of a token, what its queries are compared with: its vector times another learned matrix.",
    equation: "keys = x W_key", rung: "trainable",
  },
  values: {
    sentence: "The value of a token, what it gives to those that attend to it: its vector times a third learned matrix.",
    equation: "values = x W_value", rung: "trainable",
  },
  normalized: {
    sentence: "QK-norm: each row is divided by its root mean square and multiplied by learned scales, so that the scores cannot grow without limit.",
    equation: "y = g x / sqrt(mean(x^2) + eps)", rung: null,
  },
  rotated: {
    sentence: "Rotary positions (RoPE): each pair of features is rotated by an angle that grows with the position, so that a score depends on the distance of the two tokens. Each dial is one pair, before and after.",
    equation: "a' = a cos t - b sin t,  b' = a sin t + b cos t,  t = position / base^(2i / d)", rung: null,
  },
  output: {
    sentence: "The output matrix turns the context of this head into an update of the residual stream. The updates of all heads are added.",
    equation: "output = context W_output", rung: "multihead",
  },
  stream: {
    sentence: "The sum of the updates of all heads is added to the residual stream, from which later layers read.",
    equation: "stream = stream + output", rung: null,
  },
  next: {
    sentence: "After all layers the vector of the last token gives the probabilities of the next token. Switch this head off, or change a step, to see its effect here and below.",
    equation: "logits = head(norm(stream)),  probabilities = softmax(logits)", rung: null,
  },
  scores: {
    sentence: "The score of a query and a key is their dot product: the larger, the better they match.",
    equation: "scores = queries keys^T", rung: "trainable",
  },
  scaled: {
    sentence: "The scores are divided by the square root of the head dimension, so that long vectors do not saturate the softmax.",
    equation: "scaled = scores / sqrt(d_k)", rung: "trainable",
  },
  capped: {
    sentence: "A scaled tanh keeps the scores below a cap.",
    equation: "capped = c tanh(scaled / c)", rung: null,
  },
  masked: {
    sentence: "Scores of keys that a query may not attend to, such as later tokens, become −∞ before the softmax.",
    equation: "masked = scaled if allowed, else -inf", rung: "causal",
  },
  weights: {
    sentence: "The softmax turns each row into probabilities: none is negative, and they sum to 1.",
    equation: "weights = exp(masked) / sum exp(masked)", rung: "simplified",
  },
  dropped: {
    sentence: "During training, each weight becomes 0 with probability p, and the others are multiplied by 1/(1−p). During generation nothing is dropped.",
    equation: "dropped = weights / (1 - p) with probability 1 - p, else 0", rung: "dropout",
  },
  context: {
    sentence: "The context is the sum of the values, weighted by the attention weights.",
    equation: "context = weights values", rung: "trainable",
  },
};

/** @param {string} step @param {Head} head @returns {Words} */
export function ofStep(step, head) {
  const { rung, inGPT, facts, steps } = head;
  const [role, part] = label(head, step).split(", ");
  if (part || ["queries", "keys", "values"].includes(role)) return STEPS[part ?? role];
  const { manifest } = head.trace;
  if (manifest.model?.norm?.placement === "after") {
    if (step === "x") return { sentence: "The vectors that this attention reads, one row per token: the residual stream itself, because this model normalizes after the attention.", equation: "x = stream", rung: null };
    if (step === "stream") return { sentence: "The sum of the updates of all heads is added to the residual stream, and the sum is normalized.", equation: "stream = norm(stream + output)", rung: null };
  }
  if (step === "next" && manifest.mask != null) return { sentence: "After all layers the vector of the masked token gives the probabilities of the word in its place.", equation: STEPS.next.equation, rung: null };
  if (step === "x" && head.attention.startsWith("ladder.")) return { sentence: "The vectors of the words, one row per word.", equation: "x", rung: null };
  if (facts?.additive && step === "scores") {
    return { sentence: "Bahdanau's score: tanh of the sum of query and key, multiplied by a learned vector v.", equation: "score = v · tanh(query + key)", rung: null };
  }
  if (rung === "fixed" && step === "scores") {
    return { sentence: "On this rung the scores depend on positions only: they halve with every token of distance.", equation: "scores[i, j] = 2^-|i - j|", rung };
  }
  const prefix = inGPT && !facts ? " In a GPT a token does not attend to later tokens, so the row ends at the token itself." : "";
  if (rung === "fixed" && step === "weights") {
    return { sentence: `Each row is divided by its sum, so that its weights sum to 1.${prefix}`, equation: "weights = scores / sum scores", rung };
  }
  if (rung === "simplified" && step === "scores") {
    return { sentence: "On this rung the inputs themselves are the queries, keys and values.", equation: "scores = x x^T", rung };
  }
  if (step === "scaled" && facts && Math.abs(facts.scale - width(head) ** -0.5) > 1e-9) {
    return { ...STEPS.scaled, sentence: "The scores are multiplied by the scale of this attention.", equation: `scaled = ${short(facts.scale)} scores` };
  }
  if (step === "weights") {
    const before = steps[steps.indexOf("weights") - 1] ?? "scores";
    if (facts && facts.normalizer !== "softmax") {
      return { sentence: `${facts.normalizer} turns each row into weights that sum to 1.`, equation: `weights = ${facts.normalizer}(${before})`, rung: null };
    }
    const { sentence } = STEPS.weights;
    return { ...STEPS.weights, sentence: sentence + prefix, equation: `weights = exp(${before}) / sum exp(${before})` };
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
  if (kind === "translation") return { sentence: "In each picture, rows are queries (target words) and columns are keys (source words). Click a head to see its steps.", equation: "context = weights values", rung: null };
  if (kind === "trace") return { sentence: "The traced attention. Click a head to see its steps.", equation: "context = weights values", rung: null };
  const mlp = "Then the MLP adds its update, computed for each token separately.";
  const equation = "x' = x + attention(norm(x)),  x'' = x' + mlp(norm(x'))";
  const how = { fixed: "with fixed weights", simplified: "weighted by their similarity" }[rung];
  if (how) return { sentence: `The residual stream is normalized, and each token gets the average of itself and the earlier tokens, ${how}. ${mlp}`, equation, rung };
  const split = heads > 1 ? ", one part per head" : "";
  const norm = model?.qk_norm ? "; queries and keys are normalized (QK-norm)" : "";
  const rotated = model?.positions?.kind === "rotary" ? "; queries and keys are rotated by their position (RoPE)" : "";
  const back = head.trace.shapes.has(`${head.attention}.output`) ? "projected back and " : "";
  const contexts = heads > 1 ? "the concatenated contexts of the heads are" : "the context is";
  return { sentence: `The residual stream is normalized and projected to queries, keys and values${split}${norm}${rotated}. Each head computes attention; ${contexts} ${back}added to the stream. ${mlp}`, equation, rung };
}
