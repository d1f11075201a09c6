// The state of the exercises, which the server of `headway learn` knows: in the boxes of the exercises and in the contents.

import { h } from "../../explore/static/dom.js";
import { largest } from "../../explore/static/colours.js";
import { matrix } from "../../explore/static/matrix.js";
import { pixels } from "../../explore/static/numbers.js";

/** Numbers, or "NaN", "Infinity" and "-Infinity", in lists. @typedef {number | string | any[]} Nested */
/** @typedef {{what: string, inputs: Record<string, Nested>, yours: Nested | null, right: Nested, wrong: number[] | null}} Example */
/** @typedef {{passed: boolean, fault: string | null, message: string, line: number | null, code: string, example: Example | null, printed: string}} Grade */
/** @typedef {{number: number, name: string, title: string, state: "locked" | "open" | "passed", file: string, right: string, grade: Grade | null}} Exercise */
/** @typedef {{exercises: Exercise[], current: string | null}} Progress */

const EVERY = 1000; // milliseconds
const NOT_STARTED = "not-started"; // the fault of a file that is still the stub

/** Ask the server every second while the page is in view, and show what has changed. */
export function follow() {
  let last = "";
  const ask = async () => {
    if (!document.hidden) {
      const text = await fetch("/progress").then((answer) => (answer.ok ? answer.text() : ""), () => "");
      document.body.classList.toggle("stopped", !text);
      if (text && text !== last) {
        last = text;
        show(JSON.parse(text));
      }
    }
    setTimeout(ask, EVERY);
  };
  ask();
}

/** @param {Progress} progress */
function show({ exercises, current }) {
  for (const exercise of exercises) {
    const box = document.querySelector(`[data-exercise="${exercise.name}"]`);
    box?.setAttribute("data-state", exercise.state);
    box?.querySelector(".state")?.replaceChildren(...stateOf(exercise, exercises, current));
    const { grade } = exercise;
    box?.querySelector(".stub")?.toggleAttribute("open", exercise.state === "open" && (!grade || grade.fault === NOT_STARTED));
  }
  for (const article of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("article"))) {
    const boxes = /** @type {HTMLElement[]} */ ([...article.querySelectorAll("[data-state]")]);
    const done = boxes.length > 0 && boxes.every((box) => box.dataset.state === "passed");
    const open = boxes.some((box) => box.dataset.exercise === current);
    for (const mark of document.querySelectorAll(`[data-chapter="${article.dataset.name}"] .mark`)) {
      mark.textContent = done ? "✓" : open ? "●" : "";
      mark.setAttribute("title", done ? "passed" : open ? "your turn" : "");
    }
  }
}

/** @param {Exercise} exercise @param {Exercise[]} every @param {string | null} current @returns {Node[]} */
function stateOf({ state, file, grade, number, name, right }, every, current) {
  if (state === "locked") {
    const now = every.find((one) => one.name === current);
    return [h("p", { class: "note" }, "Locked.", now && [" Current exercise: ", link(now), "."])];
  }
  const mistake = grade && !grade.passed && grade.fault !== NOT_STARTED ? graded(grade, right) : [];
  if (state === "passed") {
    const next = every.find((one) => one.number > number && one.state !== "passed");
    return [h("p", {}, h("strong", { class: "passed" }, "✓ Passed. "), next && ["Next: ", link(next)]), ...mistake];
  }
  return [
    ...mistake,
    h("p", {}, name === current ? "Your turn: edit " : "Edit ", h("code", {}, file), " and save it. It is graded at each save."),
    h("p", { class: "note" }, "A hint: ", h("code", {}, `headway learn --hint ${number}`)),
  ];
}

/** @param {Exercise} exercise */
function link({ number, name, title }) {
  return h("a", { href: `#exercise-${name}` }, `${number} ${title}`);
}

/** What is wrong, and where. @param {Grade} grade @param {string} called  "the right" or "one right" @returns {Node[]} */
function graded({ fault, message, line, code, example, printed }, called) {
  return [
    h("p", { class: "wrong", title: fault }, message.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part))),
    ...(line ? [h("pre", { class: "code" }, h("span", { class: "c1" }, `line ${line}   `), code.trim())] : []),
    ...(example ? [compared(example, called)] : []),
    ...(printed ? [h("details", {}, h("summary", {}, "What your code printed"), h("pre", { class: "code" }, printed))] : []),
  ];
}

/** The learner's matrix next to the right one; the first wrong cell is outlined. @param {Example} example @param {string} called */
function compared({ what, inputs, yours, right, wrong }, called) {
  const at = wrong ?? [];
  const [own, other] = [yours, right].map((numbers) => (numbers == null ? null : flat(numbers, at.slice(0, -2))));
  if (!other) return h("div");
  const most = largest([...(own?.data ?? []), ...other.data]) || 1;
  const where = at.length > 2 ? ` at [${at.slice(0, -2).join(", ")}]` : "";
  const picture = (/** @type {string} */ title, /** @type {{data: number[], rows: number, columns: number}} */ numbers) => {
    const [row, column] = at.length > 1 ? at.slice(-2) : [0, at[0]];
    return h("figure", {}, h("h3", {}, title), h("div", { class: "scroll" }, matrix({
      name: title, ...numbers, first: [0, 0], scale: "signed", most, width: pixels(300 / numbers.columns, 34, 56), height: 26,
      lit: wrong ? { rows: [row, row + 1], columns: [column, column + 1] } : undefined,
    }).element));
  };
  const given = Object.entries(inputs).map(([name, numbers]) => h("div", {}, h("dt", {}, h("code", {}, name)), h("dd", {}, h("code", {}, written(numbers)))));
  return h("div", { class: "example" },
    h("div", { class: "compared" }, own && picture(`Your ${what}${where}`, own), picture(`${called[0].toUpperCase()}${called.slice(1)} ${what}${where}`, other)),
    h("details", {}, h("summary", {}, "For these inputs"), h("dl", {}, given)));
}

/** The matrix at the first indices of an array; one row if there are fewer than two axes. @param {Nested} numbers @param {number[]} at */
function flat(numbers, at) {
  let part = numbers;
  for (const i of at) part = Array.isArray(part) ? part[i] : part;
  while (Array.isArray(part) && Array.isArray(part[0]) && Array.isArray(part[0][0])) part = part[0];
  const rows = Array.isArray(part) ? (Array.isArray(part[0]) ? /** @type {Nested[][]} */ (part) : [part]) : [[part]];
  return { data: rows.flat().map(Number), rows: rows.length, columns: rows[0].length };
}

/** An array as text, a row per line. @param {Nested} numbers @returns {string} */
function written(numbers) {
  if (!Array.isArray(numbers)) return String(typeof numbers === "number" ? Number(numbers.toPrecision(4)) : numbers);
  return `[${numbers.map(written).join(Array.isArray(numbers[0]) ? ",\n " : ", ")}]`;
}
