// The column at the right: what happens here, and what can be changed.

import { button, h } from "./dom.js";
import { EDITS } from "./words.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./trace.js").Edit} Edit */
/** @typedef {import("./words.js").Words} Words */

/** @param {string} text */
export function note(text) {
  return h("p", { class: "note" }, text);
}

/** A choice among names. @param {string} name @param {string[]} names @param {number} at @param {(to: number) => void} choose */
export function picker(name, names, at, choose) {
  return h("select", { "aria-label": name, onchange: (/** @type {any} */ event) => choose(Number(event.target.value)) },
    names.map((one, i) => h("option", { value: i, selected: i === at }, one)));
}

/** The sentence, the equation, the rung. @param {App} app @param {Words} said @param {Edit[]} [edits] */
export function words(app, said, edits = []) {
  return h("section", { class: "words" },
    h("h2", {}, "What happens here"),
    h("p", {}, said.sentence),
    h("p", { class: "equation" }, said.equation),
    said.rung && app.trace.manifest.ladder
      ? h("p", {}, h("a", { href: app.address({ ...app.top, ladder: true, rung: said.rung }) }, `on the ladder: ${said.rung}`))
      : null,
    edits.map((edit) => h("p", { class: "changed" }, `Changed by you: ${EDITS[edit.what]}.`)));
}

/** What can be changed in a head or in all heads of a layer, and what has been. @param {App} app @param {Head[]} [heads] */
export function edits(app, heads) {
  const { manifest } = app.trace;
  if (manifest.kind !== "model") return null;
  const active = app.live.canAsk ? app.state.edits : (manifest.edits ?? []);
  const list = active.length
    ? h("ul", { class: "edits" }, active.map((edit) =>
        h("li", {}, `${edit.attention}${edit.head == null ? "" : `, head ${edit.head}`}: ${EDITS[edit.what] ?? edit.what} `,
          app.live.canAsk && button("undo", () => app.go({ edits: active.filter((one) => one !== edit) })))))
    : null;
  if (!app.live.canAsk) {
    return h("section", { class: "controls" }, h("h2", {}, "Change the model"), list,
      note("This file holds one run of the model. To change its text, its mask, its heads, open it live:"),
      h("code", {}, `headway explore ${manifest.title}`));
  }
  return h("section", { class: "controls" }, h("h2", {}, "Change the model"),
    heads ? choices(app, heads) : note("Go to a layer or a head to change its scale, its mask, its weights."), list);
}

/** @param {App} app @param {Head[]} heads */
function choices(app, heads) {
  const { state, trace } = app;
  const alone = state.head != null;
  /** @type {{attention: string, head: number | null}[]} */
  const targets = alone
    ? [{ attention: heads[0].attention, head: (heads[0].facts?.heads ?? 1) > 1 ? heads[0].index : null }]
    : [...new Set(heads.map((head) => head.attention))].map((attention) => ({ attention, head: null }));
  const has = (/** @type {string} */ step) => trace.shapes.has(heads[0].name(step));
  const is = (/** @type {Edit} */ edit) => targets.some(({ attention, head }) => edit.attention === attention && edit.head === head);
  const on = (/** @type {string} */ what) => state.edits.some((edit) => is(edit) && edit.what === what);
  const set = (/** @type {string | null} */ what, /** @type {string[]} */ instead) =>
    app.go({
      edits: [
        ...state.edits.filter((edit) => !(is(edit) && instead.includes(edit.what))),
        ...(what ? targets.map((target) => ({ ...target, what })) : []),
      ],
    });
  const box = (/** @type {string} */ what, /** @type {string} */ label, /** @type {string} */ step) =>
    has(step) && h("label", {}, h("input", { type: "checkbox", checked: !on(what), onchange: () => set(on(what) ? null : what, [what]) }), ` ${label}`);
  const shapes = ["uniform", "identity", "previous"];
  return h("div", { class: "choices" },
    h("p", { class: "note" }, alone ? `head ${heads[0].label} of ${heads[0].attention}` : "all heads of this layer"),
    box("no scale", "scale", "scaled"),
    box("no mask", "mask", "masked"),
    box("off", alone ? "this head" : "attention", "context"),
    has("weights")
      ? h("label", {}, "weights ",
          h("select", { onchange: (/** @type {any} */ event) => set(event.target.value || null, shapes) },
            h("option", { value: "", selected: !shapes.some(on) }, "as computed"),
            shapes.map((what) => h("option", { value: what, selected: on(what) }, what === "previous" ? "previous token" : what))))
      : note("Its weights never exist as a matrix, so only what comes of them can be changed."));
}
