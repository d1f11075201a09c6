// The plain equations of words.js and of the rungs of the ladder, as MathML.

import { h, m } from "./dom.js";

/** @typedef {{text: string, gap: boolean}} Sign  gap: whether a space is before it */

const SIGN = /\s*(?:\p{L}[\p{L}\d]*'*|\d+(?:\.\d+)?(?:e[+-]?\d+)?|\.\.\.|<=|>=|\S)/gu;
const NAME = /^(\p{L}[\p{L}\d]*)('*)$/u;
const WORD = /^(if|else|or|where|with|probability|split|into|heads|in|every|layer|column)$/;
const OPERATOR = /^(=|→|\+|-|−|<=|>=|<|>|,|·)$/;
const STOP = /^[/)\]|]$/;
/** @type {Record<string, string>} */
const SHOWN = { "-": "−", "<=": "≤", ">=": "≥", "...": "…", inf: "∞", sum: "∑" };

/**
 * An equation. Two spaces begin a new line; `_` and `^` lower and raise the next name, number or
 * what is in parentheses; `a / b` is a fraction. It wraps before relations, words, sums and factors.
 * @param {string} text
 */
export function equation(text) {
  return h("div", { class: "equation", role: "math", "aria-label": text }, text.split(/,? {2,}/).map(line));
}

/** @param {string} text */
function line(text) {
  const signs = (text.match(SIGN) ?? []).map((sign) => ({ text: sign.trim(), gap: sign !== sign.trim() }));
  /** @type {Element[][]} */
  const pieces = [[]];
  while (signs.length) {
    if (/^[=→+]$/.test(peek(signs)) || WORD.test(peek(signs))) pieces.push([]);
    for (const element of next(signs)) {
      if (element.localName === "mspace") pieces.push([]); // before a factor
      pieces.at(-1)?.push(element);
    }
  }
  return h("div", {}, pieces.filter((piece) => piece.length).map((piece) => [m("math", { displaystyle: "true" }, piece), h("wbr")]));
}

/** The next sign, which stays. @param {Sign[]} signs */
function peek(signs) {
  return signs[0]?.text ?? "";
}

/** An operator, a word, or a product with what it is divided by. @param {Sign[]} signs @returns {Element[]} */
function next(signs) {
  const text = peek(signs);
  if (OPERATOR.test(text) || STOP.test(text)) return [operator(signs)];
  if (WORD.test(text)) return [words(signs)];
  const above = product(signs);
  if (peek(signs) !== "/") return above;
  signs.shift();
  return [m("mfrac", {}, m("mrow", {}, above), peek(signs) === "(" ? inside(signs) : m("mrow", {}, product(signs)))];
}

/** @param {Sign[]} signs */
function words(signs) {
  const text = [];
  while (WORD.test(peek(signs))) text.push(signs.shift()?.text);
  return m("mtext", {}, `\u00a0${text.join("\u00a0")}\u00a0`);
}

/** A minus with a space only before it is a sign. @param {Sign[]} signs */
function operator(signs) {
  const { text, gap } = /** @type {Sign} */ (signs.shift());
  const form = gap && (signs[0]?.gap ? { form: "infix" } : { form: "prefix", rspace: "0" });
  return m("mo", { ...form, stretchy: "false" }, SHOWN[text] ?? text);
}

/** Factors up to an operator, a word or a closing bracket. @param {Sign[]} signs */
function product(signs) {
  const factors = [];
  while (signs.length && ![OPERATOR, WORD, STOP].some((one) => one.test(peek(signs)))) {
    if (signs[0].gap && factors.length) factors.push(m("mspace", { width: "0.25em" }));
    factors.push(power(signs));
  }
  return factors;
}

/** @param {Sign[]} signs @returns {Element} */
function power(signs) {
  let base = atom(signs);
  if (peek(signs) === "_") {
    signs.shift();
    base = m("msub", {}, base, bare(signs));
  }
  if (peek(signs) !== "^") return base;
  signs.shift();
  const sign = peek(signs) === "-" ? operator(signs) : null;
  return m("msup", {}, base, m("mrow", {}, sign, bare(signs)));
}

/** @param {Sign[]} signs @returns {Element} */
function atom(signs) {
  const text = peek(signs);
  if (text === "(" || text === "[") return m("mrow", {}, m("mo", {}, text), inside(signs), m("mo", {}, text === "(" ? ")" : "]"));
  if (text === "|") return m("mrow", {}, m("mo", {}, "|"), inside(signs), m("mo", {}, "|"));
  signs.shift();
  if (text === "sqrt" || text === "√") return m("msqrt", {}, bare(signs));
  const [, name, primes] = NAME.exec(text) ?? [];
  if (!name) return m(/^\d/.test(text) ? "mn" : "mo", {}, SHOWN[text] ?? text);
  const element = m(SHOWN[name] ? "mo" : "mi", {}, SHOWN[name] ?? name);
  return primes ? m("msup", {}, element, m("mo", {}, "′".repeat(primes.length))) : element;
}

/** An atom without its parentheses. @param {Sign[]} signs */
function bare(signs) {
  return peek(signs) === "(" ? inside(signs) : atom(signs);
}

/** What is between brackets, which are taken away. @param {Sign[]} signs */
function inside(signs) {
  const open = signs.shift()?.text;
  const close = { "(": ")", "[": "]", "|": "|" }[String(open)];
  const row = [];
  while (signs.length && peek(signs) !== close) row.push(...next(signs));
  signs.shift();
  return m("mrow", {}, row);
}
