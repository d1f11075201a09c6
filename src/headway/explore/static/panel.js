// The right column: an explanation, and the edits.

import { button, h } from "./dom.js";
import { equation } from "./math.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {import("./trace.js").Edit} Edit */
/** @typedef {import("./words.js").Words} Words */

/** @param {string} text */
export function note(text) {
  return h("p", { class: "note" }, text);
}

const CHOICES = 300; // the maximum number of options in a menu

/** A menu of names or, of many, a field for their number. @param {string} name @param {string[]} names @param {number} at @param {(to: number) => void} choose */
export function picker(name, names, at, choose) {
  if (names.length > CHOICES) {
    return h("span", {}, h("input", {
      type: "number", "aria-label": name, value: at, min: 0, max: names.length - 1, step: 1, required: true,
      onchange: (/** @type {any} */ event) => event.target.reportValidity() && choose(Number(event.target.value)),
    }), " ", h("span", { class: "token" }, names[at].replace(/^\d+ /, "")));
  }
  return h("select", { "aria-label": name, onchange: (/** @type {any} */ event) => choose(Number(event.target.value)) },
    names.map((one, i) => h("option", { value: i, selected: i === at }, one)));
}

/** The sentence, the equation, the rung. @param {App} app @param {Words} text @param {Edit[]} [edits] */
export function words(app, text, edits = []) {
  return h("section", { class: "words" },
    h("h2", {}, "What happens here"),
    h("p", {}, text.sentence),
    h("div", { class: edits.length ? "replaced" : false }, equation(text.equation)),
    text.rung && app.trace.manifest.ladder
      ? h("p", {}, h("a", { href: app.address({ ...app.top, ladder: true, rung: text.rung }) }, `on the ladder: ${text.rung}`))
      : null,
    edits.map((edit) => h("p", { class: "changed" }, `Changed by you: ${label(app, edit)}.`)));
}

/** What an edit changes, in words. @param {App} app @param {Edit} edit */
function label(app, edit) {
  return app.trace.manifest.edit_kinds?.find(({ name }) => name === edit.what)?.label ?? edit.what;
}

/** The changes that are possible in a head or a layer, and those that are active. @param {App} app @param {Head[]} [heads] */
export function edits(app, heads) {
  const { manifest } = app.trace;
  if (manifest.kind !== "model") return null;
  const active = app.live.canAsk ? app.state.edits : (manifest.edits ?? []);
  const list = active.length
    ? h("ul", { class: "edits" }, active.map((edit) =>
        h("li", {}, `${edit.attention}${edit.head == null ? "" : `, head ${edit.head}`}: ${label(app, edit)} `,
          app.live.canAsk && button("undo", () => app.go({ edits: active.filter((one) => one !== edit) })))))
    : null;
  if (!app.live.canAsk) {
    return h("section", { class: "controls" }, h("h2", {}, "Change the model"), list,
      note("This file has one text through the model. To change the text, the mask or heads, start the explorer:"),
      h("code", {}, `headway explore ${quoted(manifest.path ?? manifest.title)}`));
  }
  return h("section", { class: "controls" }, h("h2", {}, "Change the model"),
    heads ? choices(app, heads) : note("Select a layer or a head to change its scale, mask or weights."), list);
}

/** A word of a command for a terminal, because a file may have any name. @param {string} word */
function quoted(word) {
  return /^[\w./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
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
  const shapes = (trace.manifest.edit_kinds ?? []).filter(({ shown }) => shown.includes("weights")).map(({ name }) => name);
  return h("div", { class: "choices" },
    h("p", { class: "note" }, alone ? `head ${heads[0].label} of ${heads[0].attention}` : "all heads of this layer"),
    box("no scale", "scale", "scaled"),
    box("no mask", "mask", "masked"),
    box("off", alone ? "this head" : "attention", "context"),
    has("weights")
      ? h("label", {}, "weights ",
          h("select", { onchange: (/** @type {any} */ event) => set(event.target.value || null, shapes) },
            h("option", { value: "", selected: !shapes.some(on) }, "as computed"),
            shapes.map((what) => h("option", { value: what, selected: on(what) }, what))))
      : note("This attention never computes its weights as a matrix, so they cannot be changed."));
}
