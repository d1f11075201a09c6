// Level 1, the model: from the embeddings to the next token, one band per layer.

import { baseNames } from "./compare.js";
import { button, h } from "./dom.js";
import { percent, short } from "./numbers.js";
import { headLink } from "./layer.js";
import { legend } from "./matrix.js";
import { headsView } from "./heads.js";
import { lensView } from "./lens.js";
import { isMasked, nextBars, positionOf } from "./next.js";
import { edits, note, picker, words } from "./panel.js";
import { step } from "./attention.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./trace.js").Trace} Trace */

const TRACED = { sentence: "All traced attentions: one band per attention, one picture of the weights per head. Click a picture to see its steps.", equation: "context = weights values", rung: null };
const TRANSLATED = { sentence: "The encoder reads the sentence, and the decoder writes the translation; for each word it attends to the source. Rows are queries, columns are keys. Click a picture to see its steps.", equation: "context = weights values", rung: null };
const MASKED = { sentence: "Each token becomes a vector. Every layer adds two updates to it: from all tokens, by attention, and from the token itself, by the MLP. The last vector gives the probabilities of the word that belongs there.", equation: "logits = head(x),  x = norm(x + update) in every layer", rung: null };
const THICK = 46; // pixels for an update as large as the stream

/** The model in one of its views, with links to the others. @param {App} app */
export async function modelView(app) {
  const { trace, state } = app;
  const views = [
    { name: null, title: "layers", show: layersView },
    Object.keys(trace.manifest.heads ?? {}).length && { name: "heads", title: "what each head does", show: headsView },
    trace.has("lens.tokens") && { name: "lens", title: "logit lens", show: lensView },
  ].filter((view) => typeof view === "object");
  const chosen = views.find(({ name }) => name === state.view) ?? views[0];
  const { cells = false, picture, panel } = await chosen.show(app);
  const links = views.map((view) =>
    h("a", { href: app.address({ view: view.name, sort: null }), "aria-current": view === chosen ? "true" : false }, view.title));
  return { cells, picture: [views.length > 1 && h("div", { class: "row choice", role: "group", "aria-label": "views of the model" }, links), ...picture], panel };
}

/** One band per layer. @param {App} app @returns {Promise<import("./main.js").View>} */
async function layersView(app) {
  const { trace, base } = app;
  const { changes = {} } = trace.manifest;
  const position = positionOf(app);
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
      moved != null && h("span", { class: "moved", title: `relative difference of the residual stream of token ${position}: ${baseNames(app).join(" → ")}` }, `Δ ${percent(moved)}`));
  }));
  const stream = (/** @type {string} */ title, /** @type {string} */ name) =>
    trace.shapes.has(name) && h("div", { class: "end" }, h("h3", {}, title), h("span", { class: "shape" }, (trace.shapes.get(name) ?? []).slice(1).join(" × ")), h("div", { class: "stream" }), base && h("span", { class: "moved" }, "\u00a0"));
  return {
    picture: [
      h("div", { class: "model" },
        h("div", { class: "layers" }, stream(trace.manifest.model?.positions?.kind === "learned" ? "token + position" : "embedded", "embedded"), bands, stream("norm", "final_norm")),
        h("div", { class: "next" }, await nextBars(app, position))),
      Object.keys(changes).length
        ? note(`The line through the layers is the residual stream. Bar height: the norm of the update by attention (purple) and MLP (grey), relative to the norm of the stream.${base ? ` Δ: the relative difference of the stream of the token at the right from ${baseNames(app)[0]}.` : ""}`)
        : null,
      legend("share", 1, true),
      continuation(app),
    ],
    panel: [
      words(app, trace.manifest.kind === "trace" ? TRACED : trace.manifest.kind === "translation" ? TRANSLATED : isMasked(trace) ? MASKED : {
        sentence: "Each token becomes a vector. Every layer adds two updates to it: from the earlier tokens, by attention, and from the token itself, by the MLP. The last vector gives the probabilities of the next token.",
        equation: "logits = head(norm(x)),  x = embedded + sum layers", rung: null,
      }),
      samplingControls(app, position),
      edits(app),
    ],
  };
}

/** The difference of a layer's stream from the unchanged model, relative to its norm. */
async function distance(
  /** @type {Trace} */ trace, /** @type {Trace} */ base, /** @type {string} */ layer, /** @type {number} */ position,
) {
  const name = step(layer, "after_mlp");
  if (!trace.has(name) || !base.has(name)) return null;
  const [now, before] = await Promise.all([trace, base].map((one) => one.matrix(name, 0, position, position + 1)));
  if (now.columns !== before.columns) return null;
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
