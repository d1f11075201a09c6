// Why a step exists: the texts of ladder/why.md, and what happens on this text without the step.

import { button, h } from "./dom.js";
import { label } from "./path.js";
import { without } from "./without.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {{problem: string, without: string, measured: string, report: string | null, linked: boolean}} Why  linked: the server has the report */

/** The texts by the name of a step or rung. @type {Record<string, Why>} */
const WHY = JSON.parse(document.getElementById("why")?.textContent || "{}");

/** The text of a step. @param {Head} head @param {string} step */
export function sectionOf(head, step) {
  const { facts, rung } = head;
  if (rung === "fixed" && ["scores", "weights"].includes(step)) return "fixed";
  const other = (facts?.additive && step === "scores") || (facts && facts.normalizer !== "softmax" && step === "weights");
  if (other || (step === "x" && head.attention.startsWith("ladder."))) return ""; // the text is of another step
  const [role, part] = label(head, step).split(", ");
  return part ? { normalized: "norm", rotated: "rotary" }[part] ?? role : step === "next" ? "next" : role;
}

/** The problem, what breaks, and what was measured. @param {string} section */
export function whyText(section) {
  const why = WHY[section];
  return why && [
    h("p", {}, prose(why.problem)),
    h("p", {}, h("strong", {}, "Without it: "), prose(why.without)),
    h("p", {}, h("strong", {}, why.report ? "Measured in the lab: " : "Measured: "), prose(why.measured),
      why.report && [" ", why.linked ? h("a", { href: `/${why.report}`, target: "_blank" }, "report") : h("code", {}, why.report)]),
  ];
}

/** Text with `names` in backticks. @param {string} text */
function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
}

/** The text, and a button that shows the consequence on this text. @param {App} app @param {string} section @param {Head} head */
export async function whyPanel(app, section, head) {
  if (!WHY[section]) return null;
  const { state, trace, base, live } = app;
  const kind = live.canAsk ? trace.manifest.edit_kinds?.find((one) => one.without === section) : null;
  const [heads, width, columns] = trace.header[head.name("W_output")]?.shape ?? [];
  const possible = section !== "output" || heads * width === columns; // else the contexts do not fit into the stream
  const edit = kind && possible && trace.manifest.kind === "model" && !head.attention.startsWith("ladder.")
    ? { what: kind.name, attention: head.attention, head: kind.heads === "all" || (kind.heads === "any" && state.head == null) ? null : head.index } : null;
  const same = (/** @type {import("./trace.js").Edit} */ one) => edit && one.what === edit.what && one.attention === edit.attention && one.head === edit.head;
  const on = edit ? state.edits.some(same) : state.without;
  const unchanged = base && trace.manifest.edits?.length ? base.head(head.attention, head.index) : head;
  const rows = await without(unchanged, section, trace.tokens(head.attention).map((tokens) => tokens.map((token) => token.display)));
  const toggle = () => app.go(edit ? { edits: on ? state.edits.filter((one) => !same(one)) : [...state.edits, edit] } : { without: !on });
  return h("section", { class: "why" },
    h("h2", {}, "Why"), whyText(section),
    (edit || rows) && h("p", {}, button(on ? "with it again" : "without it", toggle, { "aria-pressed": String(Boolean(on)) }),
      h("span", { class: "note" }, ` ${scope(edit, kind?.heads ?? "", head)}`)),
    on && rows && h("table", { class: "without" },
      h("thead", {}, h("tr", {}, h("th", {}, "on this text"), h("th", {}, "with"), h("th", {}, "without"))),
      h("tbody", {}, rows.map(([name, ...values]) => h("tr", {}, h("th", { scope: "row" }, name), values.map((value) => h("td", {}, value)))))),
    on && edit && h("p", { class: "note" }, `The whole page shows the changed model; the next token is below.${section === "masked" ? " The last token may attend to all tokens with the mask too, so its own prediction changes only through later layers." : ""}`));
}

/** What the button changes. @param {import("./trace.js").Edit | null} edit @param {string} heads @param {Head} head */
function scope(edit, heads, head) {
  if (!edit) return "(computed for this head; the model stays as it is)";
  if (heads === "others") return `(changes the model: only head ${head.label} stays)`;
  return edit.head == null ? "(changes the model: all heads of this layer)" : `(changes the model: head ${head.label} of this layer)`;
}
