// The frame around all levels: path, text, tokens and keys.

import { button, h } from "./dom.js";
import { short } from "./numbers.js";
import { Live } from "./live.js";
import { START, onLadder, read, write } from "./state.js";
import { modelView } from "./model.js";
import { layerView } from "./layer.js";
import { clamped, headView, seen, stepsOf, windowAt } from "./head.js";
import { cellView } from "./cell.js";
import { ladderView, rungAt } from "./ladder.js";
import { nextStrip } from "./next.js";
import { label } from "./path.js";
import { note } from "./panel.js";
import { advanced, fit, moved, presentation, stage } from "./present.js";
import { picturePNG, pictureSVG, saveAs } from "./save.js";

/** @typedef {import("./state.js").State} State */
/** @typedef {import("./trace.js").Trace} Trace */
/** @typedef {import("./attention.js").Head} Head */
/** @typedef {{picture: import("./dom.js").Child[], panel: import("./dom.js").Child[], cells?: boolean, above?: HTMLElement}} View  cells: whether it shows values on hover; above: above picture and panel */
/**
 * What a view can use.
 * @typedef {{
 *   trace: Trace, base: Trace | null, state: State, live: Live, width: number, playing: boolean, top: State,
 *   go: (changes: Partial<State>) => void, address: (changes: Partial<State>) => string,
 *   play: () => void, say: (rows: [string, string][]) => void,
 * }} App
 */

const KEYS = [
  ["← →", "previous step, next step; on the ladder: rungs"], ["space", "play, pause"], ["esc", "leave the presentation, or go one level up"],
  ["[ ]", "previous head, next head"], [", .", "previous layer, next layer"],
  ["shift + arrows", "scroll in a large matrix"],
  ["p", "presentation: one step at a time, large"],
  ["← →, page up, page down", "in a presentation: previous and next frame, then step"],
  ["l", "matrix or lines"], ["n", "numbers as a table"], ["/", "the text"],
  ["tab, arrows, enter", "into a matrix, between cells, open a cell"], ["?", "these keys"],
];
const PLAYED = 1600; // milliseconds per step
const WINDOW = 300; // the maximum number of tokens in the strip
const FRAME = 1200; // milliseconds per frame of a presentation

/** @type {string | null} */
let typed = null; // a text that was not accepted
let problem = ""; // an error that is not shown yet
let recovering = false; // whether the previous state is being drawn again after an error
let played = false; // whether the player changed the step
let turn = 0; // only the latest of several renderings is shown
/** @type {number | undefined} */
let timer;
/** @type {Live} */
let live;
/** @type {App | null} */
let app = null;

const numbers = h("dl", { class: "numbers", "aria-live": "polite" });
const dialog = /** @type {HTMLDialogElement} */ (h("dialog", { "aria-label": "keys" }, h("h2", {}, "Keys"),
  h("dl", {}, KEYS.map(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])),
  h("form", { method: "dialog" }, h("button", {}, "close"))));

async function render() {
  const mine = ++turn;
  const hash = location.hash;
  const state = read(hash);
  if (!played) stop(); // the user has taken over
  played = false;
  document.body.classList.add("busy");
  try {
    const trace = await live.trace(state);
    if (!trace.manifest.ladder) Object.assign(state, { ladder: false, rung: null }); // in a trace file
    const base = await live.base(state);
    const now = context(trace, base, state);
    const strip = onLadder(state) ? null : await nextStrip(now);
    const content = state.present
      ? await presentation(now, headAt(now), () => currentView(now), strip, () => dialog.showModal())
      : frame(now, await currentView(now), strip);
    if (mine !== turn) return;
    const level = app && crumbs(app, headAt(app)).children.length;
    app = now;
    say([]);
    const swap = () => {
      if (mine !== turn) return; // a transition begins later, when something else may be shown
      const same = document.body.classList.contains("present") === state.present;
      const focused = same && document.activeElement && identity(document.activeElement);
      const text = field();
      if (text && text.value !== text.defaultValue) typed ??= text.value; // still being written
      const { scrollY } = window;
      document.body.replaceChildren(...content, dialog);
      document.body.classList.toggle("present", state.present);
      document.body.style.setProperty("zoom", state.present ? String(stage().zoom) : "1");
      document.body.style.setProperty("--tall", `${stage().tall}px`);
      if (state.present) fit();
      for (const one of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(FOCUSABLE))) {
        if (identity(one) === focused) one.focus();
      }
      const input = field();
      if (input && typed != null) input.value = typed;
      typed = null;
      if (level === crumbs(now, headAt(now)).children.length) window.scrollTo(0, scrollY);
      const tile = document.querySelector(".path [aria-current]");
      const path = tile?.closest(".path");
      if (tile && path) path.scrollLeft = tile.getBoundingClientRect().left - path.getBoundingClientRect().left - path.clientWidth / 2;
      if (problem) showProblem();
      document.body.dataset.drawn = hash; // for tests
    };
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches || !document.startViewTransition;
    if (still || level === crumbs(now, headAt(now)).children.length) swap();
    else {
      // If a transition is skipped, its promises are rejected, but the page is drawn.
      const { ready, finished, updateCallbackDone } = document.startViewTransition(swap);
      for (const promise of [ready, finished, updateCallbackDone]) promise.catch(() => {});
    }
    document.title = `Headway: ${trace.manifest.title}`;
  } catch (error) {
    if (mine !== turn) return;
    stop();
    problem = error instanceof Error ? error.message : String(error);
    if (app && recovering) showProblem();
    else if (app) {
      // Address and controls return to what is shown; typed text is kept.
      recovering = true;
      history.replaceState(null, "", write(app.state));
      typed = field()?.value ?? null;
      await render();
      recovering = false;
    } else if (location.hash) location.hash = ""; // the first trace
    else document.body.replaceChildren(note(problem));
  } finally {
    if (mine === turn) document.body.classList.remove("busy");
  }
}

/** The input field of the text. */
function field() {
  return /** @type {HTMLTextAreaElement | null} */ (document.getElementById("text"));
}

const FOCUSABLE = "a, button, input, select, textarea, svg[tabindex]";

/** Identifies an element, so that it keeps the focus when the page is drawn again. @param {Element} element */
function identity(element) {
  const label = element.getAttribute("aria-label") ?? element.closest("label")?.textContent ?? element.textContent;
  return `${element.tagName} ${label}`;
}

/** Show an error above the current content. */
function showProblem() {
  document.querySelector(".error")?.remove();
  const box = h("p", { class: "error", role: "alert" }, `${problem} `, button("Dismiss", () => box.remove()));
  document.querySelector("main")?.before(box);
  problem = "";
}

/** @param {Trace} trace @param {Trace | null} base @param {State} state @returns {App} */
function context(trace, base, state) {
  const wide = document.documentElement.clientWidth;
  const address = (/** @type {Partial<State>} */ changes) => write({ ...state, ...changes });
  const { text, edits, temperature, top_k, seed } = state;
  return {
    trace, base, state, live, address, say, play, playing: timer !== undefined,
    width: state.present ? stage().width : wide > 900 ? wide - 370 : wide - 24, top: { ...START, text, edits, temperature, top_k, seed },
    // From the newest address, because the page may be behind quick key presses.
    go: (changes) => { location.hash = write({ ...read(location.hash), ...changes }); },
  };
}

/** @param {App} app @returns {Promise<View>} */
async function currentView(app) {
  const head = headAt(app);
  if (head) return app.state.cell ? cellView(app, head) : headView(app, head);
  if (onLadder(app.state) || app.trace.manifest.kind === "ladder") return ladderView(app);
  const layer = app.trace.layers[app.state.layer ?? -1];
  return layer ? layerView(app, layer) : modelView(app);
}

/** The heads of the selected rung or layer; by default of the first layer. @param {App} app */
function headsAt({ trace, state }) {
  const layer = state.rung != null ? trace.rungs.find((rung) => rung.title === state.rung) : trace.layers[state.layer ?? 0];
  return layer?.heads ?? [];
}

/** The selected head, if any. @param {App} app @returns {Head | null} */
function headAt(app) {
  return headsAt(app)[app.state.head ?? -1] ?? null;
}

/** @param {App} app @param {View} view @param {HTMLElement | null} strip  the next token @returns {Node[]} */
function frame(app, view, strip) {
  const { trace, state } = app;
  const { manifest } = trace;
  const head = headAt(app);
  const tokens = onLadder(state) || manifest.kind === "ladder" ? manifest.ladder?.tokens : manifest.tokens;
  const drawn = view.picture.some((part) => part instanceof Element && part.querySelector("svg.matrix"));
  const input = /** @type {HTMLTextAreaElement} */ (h("textarea", { id: "text", rows: 1, "aria-label": "text", autocomplete: "off", spellcheck: "false", disabled: !live.canAsk }, manifest.text));
  const ask = (/** @type {Event} */ event) => {
    event.preventDefault();
    app.go({ text: input.value, cell: null, at: null, query: null });
  };
  input.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey) ask(event); });
  const facts = [
    manifest.kind === "model" ? `${manifest.step == null ? "model" : "run"}: ${manifest.title}` : manifest.title,
    manifest.step != null && `step ${manifest.step.toLocaleString("en")}`,
    manifest.validation != null && `val ${short(manifest.validation)}`,
    manifest.other != null && `compared with ${manifest.other}`,
  ];
  return [
    h("header", {},
      h("h1", {}, h("a", { class: "brand", href: write({ ...START, text: state.text }) }, "Headway")),
      h("span", { class: "facts" }, facts.filter(Boolean).join("   ")),
      manifest.kind === "trace" || (onLadder(state) && manifest.kind !== "ladder") ? null : h("form", { onsubmit: ask }, input, live.canAsk && h("button", {}, "Enter")),
      button("present", () => app.go({ present: true }), { title: "p" }),
      button("?", () => dialog.showModal(), { "aria-label": "keys" })),
    h("nav", { "aria-label": "where" }, crumbs(app, head),
      h("span", { class: "row" },
        up(app) && h("a", { class: "up", href: up(app) }, "▲ up"),
        button("copy address", () => navigator.clipboard?.writeText(location.href)),
        drawn && button("SVG", () => pictureSVG(), { title: "save this picture" }), drawn && button("PNG", () => picturePNG(), { title: "save this picture" }),
        live.canAsk && button("save as HTML", () => keep(app)))),
    tokenStrip(app, tokens ?? []),
    h("main", { class: view.above && "ladder" }, view.above, h("div", { class: "picture" }, view.picture),
      h("aside", {}, view.panel)),
    h("footer", { class: "strip" }, view.cells && numbers, strip),
  ];
}

/** The tokens; of a long text those around the position in view. @param {App} app @param {import("./trace.js").Token[]} tokens */
function tokenStrip(app, tokens) {
  const { cell, at, query } = app.state;
  const last = tokens.length - 1;
  const middle = Math.min(cell?.[0] ?? at?.[0] ?? query ?? last, last);
  const first = Math.max(0, Math.min(middle - WINDOW / 2, tokens.length - WINDOW));
  const end = Math.min(first + WINDOW, tokens.length);
  const move = (/** @type {string} */ label, /** @type {number} */ to, /** @type {boolean} */ possible, /** @type {string} */ name) =>
    h("li", {}, button(label, () => pointed(app, Math.max(0, Math.min(to, last))), { disabled: !possible, "aria-label": name }));
  return h("ol", { class: "tokens", "aria-label": "tokens" },
    tokens.length > WINDOW && [
      h("li", { class: "note" }, `tokens ${first.toLocaleString("en")} to ${(end - 1).toLocaleString("en")} of ${tokens.length.toLocaleString("en")}`),
      move("◀", middle - WINDOW, first > 0, "earlier tokens"), move("▶", middle + WINDOW, end <= last, "later tokens"),
    ],
    tokens.slice(first, end).map((token, i) =>
      h("li", { class: "token", "data-token": first + i, title: token.id == null ? "" : `token ${token.id}`, onclick: () => pointed(app, first + i) }, token.display)));
}

/** Go to a token of the strip. @param {App} app @param {number} token */
function pointed(app, token) {
  const from = Math.max(0, token - Math.floor(seen(app) / 2));
  if (headAt(app) && app.state.cell) app.go({ cell: [token, app.state.cell[1]] });
  else if (headAt(app)) app.go({ at: [from, from] });
  else if (app.state.layer != null) app.go({ at: [from, app.state.at?.[1] ?? 0] });
  else if (!onLadder(app.state)) app.go({ query: token });
}

/** The path to the current view. @param {App} app @param {Head | null} head */
function crumbs(app, head) {
  const { state, trace, address, top } = app;
  const ladder = onLadder(state) || trace.manifest.kind === "ladder";
  /** @type {[string, string][]} */
  const path = trace.manifest.kind === "ladder" ? [] : [[{ model: "Model", translation: "Translation" }[trace.manifest.kind] ?? "Trace", address({ ...top })]];
  if (ladder) path.push(["Ladder", address({ ...top, ladder: true })]);
  else if (state.layer != null && trace.layers[state.layer]) path.push([trace.layers[state.layer].title, address({ ...top, layer: state.layer })]);
  if (ladder && trace.rungs.some((rung) => rung.title === state.rung)) path.push([String(state.rung), address({ ...top, ladder: true, rung: state.rung })]);
  if (head) {
    const { step } = stepsOf(app, head);
    path.push([`Head ${head.label}`, address({ cell: null, step: null })], [label(head, step), address({ cell: null, step })]);
    if (state.cell) path.push([`[${state.cell.map((at, i) => trace.tokens(head.attention)[i][Math.min(at, head.size[i] - 1)].display).join(", ")}]`, location.hash]);
  }
  const also = trace.manifest.kind === "model" && trace.manifest.ladder && !ladder ? h("a", { class: "aside", href: address({ ...top, ladder: true }) }, "the ladder") : null;
  return h("span", { class: "crumbs" }, path.map(([name, href], i) => [i > 0 && " › ", h("a", { href, "aria-current": i === path.length - 1 ? "page" : false }, name)]).flat(), also);
}

/** One level up. @param {App} app */
function up({ state, top, address, trace }) {
  if (state.cell) return address({ cell: null });
  if (state.head != null) return address({ ...top, layer: state.layer, rung: state.rung, ladder: state.rung != null });
  if (state.layer != null || (onLadder(state) && trace.manifest.kind !== "ladder")) return address({ ...top });
  return null;
}

/** @param {[string, string][]} rows */
function say(rows) {
  const shown = rows.length ? rows : [["", "Hover over a cell to see its values."]];
  numbers.replaceChildren(...shown.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function play() {
  if (timer !== undefined) {
    stop();
    render();
    return;
  }
  const present = read(location.hash).present;
  timer = window.setInterval(advance, present ? FRAME : PLAYED);
  played = true;
  if (present) advance();
  else render();
}

/** The player's next frame or step. */
function advance() {
  const head = app && headAt(app);
  const next = app && (app.state.present ? advanced(app, head) : head && !app.state.cell ? stepAfter(app, head) : null);
  if (!app || !next) {
    stop();
    render();
    return;
  }
  played = true;
  const address = app.address(next);
  if (location.protocol === "about:") location.hash = address; // in a notebook
  else {
    history.replaceState(null, "", address); // so that Back ends the player
    render();
  }
}

/** The step after this one; after the last one the first. @param {App} app @param {Head} head */
function stepAfter(app, head) {
  const { steps, step } = stepsOf(app, head);
  return { step: steps[(steps.indexOf(step) + 1) % steps.length] };
}

function stop() {
  window.clearInterval(timer);
  timer = undefined;
}

/** @param {App} app */
async function keep(app) {
  document.body.classList.add("busy");
  try {
    saveAs(await live.save(app.state, location.hash), "headway.html");
  } catch (error) {
    problem = error instanceof Error ? error.message : String(error);
    showProblem();
  } finally {
    document.body.classList.remove("busy");
  }
}

/** @param {KeyboardEvent} event */
function pressed(event) {
  const target = /** @type {HTMLElement} */ (event.target);
  if (!app || event.ctrlKey || event.metaKey || event.altKey || target.closest("input, select, textarea, dialog")) return;
  const { go, trace } = app;
  const state = read(location.hash);
  const now = { ...app, state };
  const head = headAt(now);
  const move = (/** @type {"head" | "layer"} */ what, /** @type {number} */ by, /** @type {number} */ count) => {
    const to = (state[what] ?? 0) + by;
    if (to >= 0 && to < count) go({ [what]: to });
  };
  const along = (/** @type {number} */ by) => {
    if (state.present) {
      const to = moved(now, head, by);
      if (to) go(to);
      return;
    }
    const rung = !head && (onLadder(state) || trace.manifest.kind === "ladder") && trace.rungs[rungAt(now) + by];
    if (rung) go({ ladder: true, rung: rung.title });
    if (!head || state.cell) return;
    const { steps, step } = stepsOf(now, head);
    const to = steps[steps.indexOf(step) + by];
    if (to) go({ step: to });
  };
  const heads = headsAt(now).length;
  const leave = write({ ...state, present: false, frame: null });
  /** @type {Record<string, () => void>} */
  const acts = {
    ArrowLeft: () => along(-1), ArrowRight: () => along(1),
    Escape: () => { const to = state.present ? leave : up(now); if (to) location.hash = to; },
    p: () => { location.hash = state.present ? leave : write({ ...state, present: true }); },
    "[": () => state.head != null && move("head", -1, heads), "]": () => state.head != null && move("head", 1, heads),
    ",": () => state.layer != null && move("layer", -1, trace.layers.length), ".": () => state.layer != null && move("layer", 1, trace.layers.length),
    l: () => head && go({ lines: !state.lines, step: "weights" }), n: () => go({ table: !state.table }),
    "/": () => field()?.select(), "?": () => dialog.showModal(),
  };
  const shift = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (event.shiftKey && shift && head) {
    const [top, left] = windowAt(now, head.size).map((from, i) => from + (shift[i] * seen(now)) / 2);
    acts[event.key] = () => go({ at: clamped(now, [top, left], head.size) });
  }
  if (state.present) Object.assign(acts, { PageUp: acts.ArrowLeft, PageDown: acts.ArrowRight });
  if (event.key === " " && (state.present || (head && !state.cell)) && !target.closest("a, button")) acts[" "] = play;
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
}

/** A token pointed at lights up everywhere. @param {Event} event */
function light(event) {
  const token = event.target instanceof Element ? event.target.closest("[data-token]")?.getAttribute("data-token") : null;
  for (const element of document.querySelectorAll("[data-token]")) {
    element.classList.toggle("lit-token", token != null && element.getAttribute("data-token") === token);
  }
}

/** Links within the page. In a notebook's frame `#...` alone would lead out of it. @param {MouseEvent} event */
function follow(event) {
  const link = event.target instanceof Element && event.target.closest("a[href^='#']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  location.hash = link.getAttribute("href") ?? "";
}

async function start() {
  try {
    live = await Live.open();
  } catch (error) {
    document.body.replaceChildren(note(`Cannot read the trace: ${error instanceof Error ? error.message : error}`));
    return;
  }
  window.addEventListener("hashchange", render);
  window.addEventListener("resize", () => {
    played = timer !== undefined; // keep playing, for example when the page becomes full screen
    render();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
  document.addEventListener("click", follow);
  document.addEventListener("keydown", pressed);
  document.addEventListener("pointerover", light);
  await render();
}

start();
