// The probabilities of the next token: as bars, and as a strip below every view.

import { button, h } from "./dom.js";
import { percent } from "./numbers.js";
import { baseNames } from "./compare.js";
import { note } from "./panel.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./trace.js").Trace} Trace */

const BARS = 10;
const STRIP = 5; // tokens in the strip

/** The position whose next token is shown: chosen, masked, or the last. @param {App} app */
export function positionOf({ trace, state }) {
  const { tokens, mask } = trace.manifest;
  const masked = tokens.findIndex((token) => token.id === mask);
  return Math.min(state.query ?? (masked < 0 ? tokens.length - 1 : masked), tokens.length - 1);
}

/** The most likely tokens at a position, before and after an edit, in one line; null if they are unknown. @param {App} app */
export async function nextStrip(app) {
  const { trace, base } = app;
  const { vocabulary, tokens, kind } = trace.manifest;
  const position = positionOf(app);
  const now = kind === "model" ? await nextShares(app, position) : null;
  if (!now || !vocabulary) return null;
  const old = base && (await nextShares(app, position, base));
  const most = (/** @type {Float64Array} */ shares) => [...shares.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, STRIP);
  const shown = old ? [...new Set([...most(now), ...most(old)])].sort((a, b) => now[b] - now[a]) : most(now);
  const change = (/** @type {number} */ points) => (Math.abs(points) < 0.05 ? "0" : `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(Math.abs(points) < 9.95 ? 1 : 0)}`);
  return h("section", { class: "upcoming", "aria-label": "next token" },
    h("span", { class: "note" }, isMasked(trace) ? "in place of " : "next token after ", h("span", { class: "token" }, tokens[position].display)),
    old && h("span", { class: "note" }, baseNames(app).join(" → ")),
    app.live.canAsk && app.state.edits.length > 0 && button("restore the model", () => app.go({ edits: [] })),
    h("ol", {}, shown.map((id) => h("li", {}, h("span", { class: "token" }, vocabulary[id] ?? `(${id})`), " ",
      old ? [h("s", {}, percent(old[id] ?? 0)), " "] : null,
      h("span", { "data-value": now[id] }, percent(now[id])),
      old ? h("span", { class: change(100 * (now[id] - (old[id] ?? 0))) === "0" ? "note" : now[id] < (old[id] ?? 0) ? "less" : "more" }, ` (${change(100 * (now[id] - (old[id] ?? 0)))})`) : null))));
}

/** Whether the model predicts masked words, not the next token. @param {Trace} trace */
export function isMasked(trace) {
  return trace.manifest.model?.output === "transform";
}

/** The probabilities of the token after a position; null if they are unknown. @param {App} app @param {number} position @param {Trace} [trace] */
export async function nextShares(app, position, trace = app.trace) {
  const row = trace.manifest.vocabulary ? await logits(trace, position) : null;
  return row && probabilities(app, row);
}

/** These probabilities as bars. @param {App} app @param {number} position */
export async function nextBars(app, position) {
  const { trace, base } = app;
  const { tokens, vocabulary, written = [] } = trace.manifest;
  if (!vocabulary) return null; // for a trace the vocabulary is unknown
  const shares = await nextShares(app, position);
  if (!shares) return note("The logits of this position are left out of this file.");
  const old = base && (await nextShares(app, position, base));
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
          old && h("span", { class: "ghost", title: `${baseNames(app)[0]}: ${percent(old[id] ?? 0)}`, style: { left: `${100 * (old[id] ?? 0)}%` } })),
        h("span", { class: "number", "data-value": shares[id] }, percent(shares[id]))))),
    followed && h("p", { class: "note" }, `outlined: ${after}${old ? `; line: ${baseNames(app)[0]}` : ""}`),
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
function probabilities(app, row) {
  const { temperature, top_k } = app.live.request(app.state, true);
  const all = Float64Array.from(row);
  const best = all.reduce((most, x) => Math.max(most, x), -Infinity);
  const order = [...all.keys()].sort((a, b) => all[b] - all[a]); // stable, as in the engines
  const kept = new Set(order.slice(0, temperature === 0 ? 1 : (top_k ?? all.length)));
  const raised = all.map((x, id) => (!kept.has(id) ? 0 : temperature === 0 ? 1 : Math.exp((x - best) / temperature)));
  const total = raised.reduce((sum, x) => sum + x, 0);
  return raised.map((x) => x / total);
}
