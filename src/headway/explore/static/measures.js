// The numbers that say what a head does on the traced text; explore/heads.py computes them.

import { h } from "./dom.js";
import { percent } from "./numbers.js";
import { note } from "./panel.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */

/** The names in the manifest, in the order on the page, with their titles and explanations. */
export const MEASURES = {
  previous: { title: "previous token", what: "mean weight on the token before" },
  itself: { title: "itself", what: "mean weight on the token itself" },
  first: { title: "first token", what: "mean weight on the first token" },
  induction: { title: "induction", what: "mean weight on the token after the last earlier occurrence of the current token" },
  entropy: { title: "entropy", what: "mean entropy of the weights, in nats: 0 if all weight is on one key" },
};

/** A number of a head; null if there is none. @param {Head} head @param {string} name */
export function measured(head, name) {
  return head.trace.manifest.heads?.[head.attention]?.heads[head.index]?.[name] ?? null;
}

/** A number as text. @param {string} name @param {number | null} value */
export function shown(name, value) {
  return value == null ? "–" : name === "entropy" ? value.toFixed(2) : percent(value);
}

/** Over how many queries the means are taken. @param {Head} head */
export function counted(head) {
  const { queries, repeated } = head.trace.manifest.heads?.[head.attention] ?? { queries: 0, repeated: 0 };
  const rows = head.size[0];
  const none = repeated == null ? "unknown, because the trace has no token ids" : "none of their tokens occurred before";
  return `${queries === rows ? `Means over all ${rows} queries` : `Means over ${queries} of ${rows} queries, evenly spaced`}. Induction: ${repeated ? `over the ${repeated} whose token occurred before` : none}.`;
}

/** What a head does on this text, for the panel. @param {App} app @param {Head} head */
export function measures(app, head) {
  if (!app.trace.manifest.heads?.[head.attention]) return null;
  return h("section", {},
    h("h2", {}, "What this head does on this text"),
    h("dl", { class: "measures" }, Object.entries(MEASURES).map(([name, { title, what }]) =>
      [h("dt", { title: what }, title), h("dd", { "data-value": measured(head, name) ?? NaN }, shown(name, measured(head, name)), name === "entropy" && " nats")])),
    note(counted(head)),
    h("p", { class: "note" }, h("a", { href: app.address({ ...app.top, view: "heads" }) }, "compare all heads")));
}
