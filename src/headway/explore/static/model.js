// Level 1, the model: from the embeddings to the next token, one band per layer.

import { button, h } from "./dom.js";
import { percent, short } from "./numbers.js";
import { headLink } from "./layer.js";
import { legend } from "./matrix.js";
import { edits, note, picker, words } from "./panel.js";
import { step } from "./attention.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./trace.js").Trace} Trace */

const TRACED = { sentence: "All traced attentions: one band per attention, one picture of the weights per head. Click a picture to see its steps.", equation: "context = weights values", rung: null };
const TRANSLATED = { sentence: "The encoder reads the sentence, and the decoder writes the translation; for each word it attends to the source. Rows are queries, columns are keys. Click a picture to see its steps.", equation: "context = weights values", rung: null };
const MASKED = { sentence: "Each token becomes a vector. Every layer adds two updates to it: from all tokens, by attention, and from the token itself, by the MLP. The last vector gives the probabilities of the word that belongs there.", equation: "logits = head(x),  x = norm(x + update) in every layer", rung: null };
const BARS = 10;
const THICK = 46; // pixels for an update as large as the stream

/** @param {App} app */
export async function modelView(app) {
  const { trace, base } = app;
  const { changes = {} } = trace.manifest;
  const last = trace.manifest.tokens.length - 1;
  const masked = trace.manifest.tokens.findIndex((token) => token.id === trace.manifest.mask);
  const position = Math.min(app.state.query ?? (masked < 0 ? last : masked), last);
  const bands = await Promise.all(trace.layers.map(async (layer, i) => {
    const [attention = 0, mlp = 0] = changes[layer.name] ?? [];
    const moved = base && (await distance(trace, base, layer.name, position));
    return h("div", { class: "band" },
      h("h3", {}, h("a", { href: app.address({ layer: i }) }, layer.title)),
      h("div", { class: "thumbs" }, await Promise.all(layer.heads.map((head, j) => headLink(app, head, j, { layer: i })))),
      changes[layer.name] && h("div", { class: "mlp" }, "MLP"),
      changes[layer.name] && h("div", { class: "stream", title: `relative norm of the update: attention ${short(attention)}, MLP ${short(mlp)}` },
        h("span", { class: "attention", style: { height: `${2 + THICK * Math.min(attention, 1)}px` } }),
        h("span", { class: "mlp-update", style: { height: `${2 + THICK * Math.min(mlp, 1)}px` } })),
      moved != null && h("span", { class: "moved", title: `relative difference of the residual stream of token ${position} from the unchanged model` }, `Δ ${percent(moved)}`));
  }));
  const stream = (/** @type {string} */ title, /** @type {string} */ name) =>
    trace.shapes.has(name) && h("div", { class: "end" }, h("h3", {}, title), h("span", { class: "shape" }, (trace.shapes.get(name) ?? []).slice(1).join(" × ")), h("div", { class: "stream" }), base && h("span", { class: "moved" }, "\u00a0"));
  return {
    picture: [
      h("div", { class: "model" },
        h("div", { class: "layers" }, stream(trace.manifest.model?.positions?.kind === "learned" ? "token + position" : "embedded", "embedded"), bands, stream("norm", "final_norm")),
        h("div", { class: "next" }, await next(app, position))),
      Object.keys(changes).length
        ? note(`The line through the layers is the residual stream. Bar height: the norm of the update by attention (purple) and MLP (grey), relative to the norm of the stream.${base ? " Δ: how far your changes move the stream of the token chosen at the right." : ""}`)
        : null,
      legend("share", 1, true),
      continuation(app),
    ],
    panel: [
      words(app, trace.manifest.kind === "trace" ? TRACED : trace.manifest.kind === "translation" ? TRANSLATED : isMasked(trace) ? MASKED : {
        sentence: "Each token becomes a vector. Every layer adds two updates to it: from the earlier tokens, by attention, and from the token itself, by the MLP. The last vector gives the probabilities of the next token.",
        equation: "logits = head(norm(x)),  x = embedded + Σ layers", rung: null,
      }),
      samplingControls(app, position),
      edits(app),
    ],
  };
}

/** Whether the model predicts masked words, not the next token. @param {Trace} trace */
function isMasked(trace) {
  return trace.manifest.model?.output === "transform";
}

/** The probabilities of the token after a position. @param {App} app @param {number} position */
async function next(app, position) {
  const { trace, base } = app;
  const { tokens, vocabulary, written = [] } = trace.manifest;
  const row = await logits(trace, position);
  if (!vocabulary) return null; // for a trace the vocabulary is unknown
  if (!row) return note("The logits of this position are left out of this file.");
  const shares = probabilities(app, row);
  const before = base && (await logits(base, position));
  const old = before && probabilities(app, before);
  const best = [...shares.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, BARS).filter((id) => shares[id] > 0);
  const followed = isMasked(trace) ? null : (tokens[position + 1] ?? written[0]);
  if (followed?.id != null && !best.includes(followed.id)) best.push(followed.id);
  const after = tokens[position + 1] ? "the next token of the text" : "the sampled token";
  return [
    h("h3", {}, isMasked(trace) ? "in place of " : "after ", h("span", { class: "token" }, tokens[position].display)),
    h("div", { class: "bars" }, best.map((id) =>
      h("div", { class: "bar", "aria-current": id === followed?.id ? "true" : false, title: `${vocabulary[id] ?? id}: ${shares[id]}${id === followed?.id ? `, ${after}` : ""}` },
        h("span", { class: "token" }, vocabulary[id] ?? `(${id})`),
        h("span", { class: "track" },
          h("span", { class: "fill next", style: { width: `${100 * shares[id]}%` } }),
          old && h("span", { class: "ghost", title: `unchanged: ${percent(old[id])}`, style: { left: `${100 * old[id]}%` } })),
        h("span", { class: "number", "data-value": shares[id] }, percent(shares[id]))))),
    followed && h("p", { class: "note" }, `outlined: ${after}${old ? "; line: before your edit" : ""}`),
  ];
}

/** The logits at a position; the file may have only those of the last positions. @param {Trace} trace @param {number} position */
async function logits(trace, position) {
  if (!trace.has("logits")) return null;
  const rows = trace.header.logits.shape.at(-2);
  const at = position - (trace.manifest.tokens.length - rows);
  return at < 0 ? null : (await trace.matrix("logits", 0, at, at + 1)).data;
}

/** Softmax at the selected temperature over the k largest logits. @param {App} app @param {ArrayLike<number>} row */
export function probabilities(app, row) {
  const { temperature, top_k } = app.live.request(app.state, true);
  const all = Float64Array.from(row);
  const best = all.reduce((most, x) => Math.max(most, x), -Infinity);
  const order = [...all.keys()].sort((a, b) => all[b] - all[a]); // stable, as in the engines
  const kept = new Set(order.slice(0, temperature === 0 ? 1 : (top_k ?? all.length)));
  const raised = all.map((x, id) => (!kept.has(id) ? 0 : temperature === 0 ? 1 : Math.exp((x - best) / temperature)));
  const total = raised.reduce((sum, x) => sum + x, 0);
  return raised.map((x) => x / total);
}

/** The difference of a layer's stream from the unchanged model, relative to its norm. */
async function distance(
  /** @type {Trace} */ trace, /** @type {Trace} */ base, /** @type {string} */ layer, /** @type {number} */ position,
) {
  const name = step(layer, "after_mlp");
  if (!trace.has(name) || !base.has(name)) return null;
  const [now, before] = await Promise.all([trace, base].map((one) => one.matrix(name, 0, position, position + 1)));
  let [moved, length] = [0, 0];
  for (let c = 0; c < now.columns; c++) {
    moved += (now.data[c] - before.data[c]) ** 2;
    length += before.data[c] ** 2;
  }
  return Math.sqrt(moved / length);
}

/** The text and the generated continuation. @param {App} app */
function continuation(app) {
  const { tokens, written, sampling } = app.trace.manifest;
  if (!written?.length) return null;
  return h("div", { class: "written" },
    h("h3", {}, "Generated continuation"),
    h("p", {}, tokens.slice(-12).map((token) => h("span", { class: "token dim" }, token.display)), written.map((token) => h("span", { class: "token" }, token.display))),
    sampling && h("p", { class: "note" }, `sampled with temperature ${sampling.temperature}${sampling.top_k ? `, top ${sampling.top_k}` : ""}, seed ${sampling.seed}`));
}

/** @param {App} app @param {number} position */
function samplingControls(app, position) {
  const { trace, state, live } = app;
  if (!trace.has("logits") || !trace.manifest.vocabulary) return null;
  const { temperature, top_k } = live.request(state, true);
  const number = (/** @type {string} */ name, /** @type {number | null} */ value, /** @type {object} */ limits, /** @type {(n: number | null) => object} */ change) =>
    h("label", {}, `${name} `, h("input", {
      type: "number", value: value ?? "", ...limits,
      onchange: (/** @type {any} */ event) => event.target.reportValidity() && app.go(change(event.target.value === "" ? null : Number(event.target.value))),
    }));
  return h("section", { class: "controls" },
    h("h2", {}, isMasked(trace) ? "The predicted word" : "The next token"),
    h("label", {}, isMasked(trace) ? "in place of " : "after ", picker("position", trace.manifest.tokens.map((token, i) => `${i} ${token.display}`), position, (to) => app.go({ query: to }))),
    number("temperature", temperature, { min: 0, max: 10, step: 0.1, required: true }, (n) => ({ temperature: n })),
    number("top k", top_k, { min: 1, step: 1, placeholder: "all" }, (n) => ({ top_k: n })),
    live.canAsk && !isMasked(trace) && button("generate again", () => app.go({ seed: state.seed + 1 })));
}
