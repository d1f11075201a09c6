// What each step does, in a sentence, with its equation and the rung of the ladder that brings it.

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

/** @param {string} step @param {string} rung */
export function ofStep(step, rung) {
  if (rung === "fixed" && step === "scores") {
    return { sentence: "On this rung scores come from positions alone: half as much with every step away.", equation: "scores = 2^−|i−j|", rung };
  }
  if (rung === "fixed" && step === "weights") {
    return { sentence: "Each row is divided by its sum, so that it makes shares.", equation: "weights = scores / Σ scores", rung };
  }
  if (rung === "simplified" && step === "scores") {
    return { sentence: "On this rung the inputs are queries, keys and values at once.", equation: "scores = x xᵀ", rung };
  }
  return STEPS[step];
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
