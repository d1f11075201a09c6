// Two vectors in the plane, their dot product, and the dot products of all words with the query.

import { button, h, s } from "../../explore/static/dom.js";
import { largest } from "../../explore/static/colours.js";
import { bracket, short } from "../../explore/static/numbers.js";
import { features } from "./compute.js";
import { sentenceBox } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {[number, number]} Vector */

const [SIZE, UNIT, MOST] = [340, 145, 1.1]; // pixels of the plane and of 1; the largest coordinate
const STEP = 0.05; // of an arrow key
const WORDS = 8;
/** @type {Record<string, Vector>} */
const KEYS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };

/** @param {Vector} a @param {Vector} b */
export function dot(a, b) {
  return a[0] * b[0] + a[1] * b[1];
}

/**
 * Each word is a vector of its first two numbers, so that it fits into a plane. Options: text,
 * another sentence; query and key, the words at the start, counted from 0.
 * @param {Record<string, any>} options @param {Figure} figure
 */
export function draw(options, figure) {
  const { state } = figure; // moved: vectors by the word; query, key
  const sentence = sentenceBox(figure, options.text, WORDS, update);
  const role = (/** @type {"query" | "key"} */ name) => Math.min(state[name] ?? options[name], sentence.words().length - 1);
  const vector = (/** @type {number} */ at) => {
    const word = sentence.words()[at];
    return /** @type {Vector} */ (state.moved?.[word.toLowerCase()] ?? features(word).slice(0, 2));
  };
  const lines = s("g", {});
  const handles = /** @type {const} */ (["key", "query"]).map((name) => handle(name));
  const plane = s("svg", { class: "plane", width: SIZE, height: SIZE, viewBox: `0 0 ${SIZE} ${SIZE}` }, axes(), lines, handles);
  const list = h("div", { class: "bars" });
  const choice = h("div", { class: "row" });

  /** The end of an arrow that can be moved. @param {"query" | "key"} name */
  function handle(name) {
    const move = (/** @type {Vector} */ to) => {
      const word = sentence.words()[role(name)].toLowerCase();
      const inside = to.map((x) => Math.max(-MOST, Math.min(MOST, Math.round(x * 100) / 100)));
      state.moved = { ...state.moved, [word]: inside };
      update();
    };
    const circle = s("circle", {
      r: 11, class: `handle ${name}`, tabindex: 0, role: "application",
      onpointerdown: (/** @type {PointerEvent} */ event) => circle.setPointerCapture(event.pointerId),
      onpointermove: (/** @type {PointerEvent} */ event) => {
        if (!circle.hasPointerCapture(event.pointerId)) return;
        const box = plane.getBoundingClientRect();
        const shrunk = box.width / SIZE; // on a narrow screen
        move([((event.clientX - box.left) / shrunk - SIZE / 2) / UNIT, (SIZE / 2 - (event.clientY - box.top) / shrunk) / UNIT]);
      },
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        const by = KEYS[event.key];
        if (!by) return;
        event.preventDefault();
        event.stopPropagation();
        const from = vector(role(name));
        move([from[0] + by[0], from[1] + by[1]]);
      },
    });
    return circle;
  }

  function update() {
    const words = sentence.words();
    plane.style.visibility = words.length ? "visible" : "hidden";
    if (!words.length) return list.replaceChildren();
    const [query, key] = [vector(role("query")), vector(role("key"))];
    const names = { query: words[role("query")], key: words[role("key")] };
    const product = dot(query, key);
    const along = product / (dot(query, query) || 1); // of the query, where the projection ends
    /** @type {Vector} */
    const foot = [along * query[0], along * query[1]];
    lines.replaceChildren(
      ...words.map((_, at) => s("g", { class: "other" }, arrow([0, 0], vector(at)))),
      s("line", { class: "drop", ...ends(key, foot) }),
      s("line", { class: "projection", ...ends([0, 0], foot) }),
      s("g", { class: "key" }, arrow([0, 0], key)),
      s("g", { class: "query" }, arrow([0, 0], query)),
      ...tags(words, words.map((_, at) => vector(at))),
    );
    for (const circle of handles) {
      const name = circle.classList.contains("key") ? "key" : "query";
      const [x, y] = pixel(name === "key" ? key : query);
      circle.setAttribute("cx", String(x));
      circle.setAttribute("cy", String(y));
      circle.setAttribute("aria-label", `${name}, ${names[name]}: ${pair(name === "key" ? key : query)}; arrow keys move it`);
    }
    const same = role("query") === role("key");
    handles[0].style.display = same ? "none" : "";
    const products = words.map((_, at) => dot(query, vector(at)));
    list.replaceChildren(...words.map((word, at) => bar(word, products[at], Math.max(1, largest(products)), at)));
    choice.replaceChildren(h("span", {}, "Query"), ...words.map((word, at) =>
      button(word, () => choose("query", at), { "aria-pressed": String(at === role("query")) })));
    const [long, wide] = [query, key].map((one) => Math.sqrt(dot(one, one)));
    const cosine = long * wide ? product / (long * wide) : 0;
    figure.say([
      [`query “${names.query}”`, pair(query)],
      [`key “${names.key}”`, pair(key)],
      ["dot product", `${short(query[0])} · ${bracket(key[0])} + ${bracket(query[1])} · ${bracket(key[1])} = ${short(product)}`],
      ["length of the query × length of the projection", `${short(long)} · ${bracket(wide * cosine)} = ${short(product)}`],
      ["angle", `${Math.round((Math.acos(Math.max(-1, Math.min(1, cosine))) * 180) / Math.PI)}°`],
    ]);
  }

  /** @param {"query" | "key"} name @param {number} at */
  function choose(name, at) {
    state[name] = at;
    update();
    const buttons = (name === "query" ? choice : list).querySelectorAll("button");
    buttons[at].focus();
  }

  /** A row: the dot product of a word with the query. @param {string} word @param {number} product @param {number} most @param {number} at */
  function bar(word, product, most, at) {
    const share = (50 * Math.abs(product)) / most;
    return h("div", { class: "bar", "data-product": product },
      button(word, () => choose("key", at), { "aria-pressed": String(at === role("key")) }),
      h("span", { class: "track signed" }, h("span", { class: "fill", style: { width: `${share}%`, "margin-left": `${product < 0 ? 50 - share : 50}%` } })),
      h("span", { class: "number" }, short(product)));
  }

  update();
  return h("div", { class: "dot" }, sentence.element, choice,
    h("div", { class: "beside" }, plane, h("div", {}, h("h3", {}, "Dot product of each word with the query"), list)),
    h("p", { class: "note" }, "Drag the end of an arrow, or select it with Tab and move it with the arrow keys. Click a word to choose the key."));
}

/** @param {Vector} at */
function pixel([x, y]) {
  return [SIZE / 2 + x * UNIT, SIZE / 2 - y * UNIT];
}

/** @param {Vector} from @param {Vector} to */
function ends(from, to) {
  const [[x1, y1], [x2, y2]] = [pixel(from), pixel(to)];
  return { x1, y1, x2, y2 };
}

/** @param {Vector} from @param {Vector} to */
function arrow(from, to) {
  const { x1, y1, x2, y2 } = ends(from, to);
  const angle = (Math.atan2(y2 - y1, x2 - x1) * 180) / Math.PI;
  return [s("line", { x1, y1, x2, y2 }), s("path", { d: "M0 0 L-10 4 L-10 -4 Z", transform: `translate(${x2} ${y2}) rotate(${angle})` })];
}

/** Labels beyond the ends of arrows, one below another where they would overlap. @param {string[]} words @param {Vector[]} vectors */
function tags(words, vectors) {
  /** @type {[number, number][]} */
  const placed = [];
  return words.map((word, i) => {
    const vector = vectors[i];
    const long = Math.sqrt(dot(vector, vector)) || 1;
    let [x, y] = pixel([vector[0] * (1 + 0.11 / long), vector[1] * (1 + 0.11 / long)]);
    while (placed.some(([a, b]) => Math.abs(a - x) < 45 && Math.abs(b - y) < 12)) y += 2;
    placed.push([x, y]);
    const letters = [...word];
    return s("text", { x, y: y + 4, "text-anchor": vector[0] < -0.2 ? "end" : "start" }, letters.length > 9 ? `${letters.slice(0, 8).join("")}…` : word);
  });
}

function axes() {
  const end = SIZE / 2;
  return s("g", { class: "cross" }, [-1, 1].map((at) => [
    s("text", { x: end + at * UNIT, y: end + 14, "text-anchor": "middle" }, at),
    s("text", { x: end - 6, y: end - at * UNIT + 4, "text-anchor": "end" }, at),
    s("line", { x1: end + at * UNIT, x2: end + at * UNIT, y1: end - 3, y2: end + 3 }),
    s("line", { x1: end - 3, x2: end + 3, y1: end - at * UNIT, y2: end - at * UNIT }),
  ]), s("line", { x1: 0, x2: SIZE, y1: end, y2: end }), s("line", { x1: end, x2: end, y1: 0, y2: SIZE }));
}

/** @param {Vector} vector */
function pair([x, y]) {
  return `(${short(x)}, ${short(y)})`;
}
