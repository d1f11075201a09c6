// The state of the page: view, text and edits, stored in the address after the #.

/** @typedef {import("./trace.js").Edit} Edit */
/**
 * @typedef {{
 *   text: string | null, edits: Edit[], temperature: number | null, top_k: number | null, seed: number,
 *   ladder: boolean, rung: string | null, diff: boolean,
 *   layer: number | null, head: number | null, step: string | null, cell: [number, number] | null,
 *   tensor: string | null, part: number | null, at: [number, number] | null, query: number | null,
 *   lines: boolean, table: boolean, without: boolean, present: boolean, frame: number | null, training: number | null, view: string | null, sort: string | null, deleted: string | null,
 * }} State
 */

/** @type {State} */
export const START = {
  text: null, edits: [], temperature: null, top_k: null, seed: 0, ladder: false, rung: null, diff: false,
  layer: null, head: null, step: null, cell: null, tensor: null, part: null, at: null, query: null,
  lines: false, table: false, without: false, present: false, frame: null, training: null, view: null, sort: null, deleted: null,
};

const NUMBERS = ["top_k", "seed", "layer", "head", "part", "query", "training", "frame"];

/** Parse an address; missing and invalid values have their defaults. @param {string} hash */
export function read(hash) {
  const parameters = new URLSearchParams(hash.replace(/^#/, ""));
  /** @type {Record<string, any>} */
  const state = { ...START, edits: [] };
  for (const [name, value] of parameters) {
    if (["text", "rung", "step", "tensor", "view", "sort", "deleted"].includes(name)) state[name] = value;
    else if (["diff", "lines", "table", "ladder", "without", "present"].includes(name)) state[name] = value === "1";
    else if (["cell", "at"].includes(name)) {
      const pair = value.split(",").map(Number);
      if (pair.length === 2 && pair.every((n) => Number.isInteger(n) && n >= 0)) state[name] = pair;
    } else if (name === "temperature") {
      if (value !== "" && Number(value) >= 0 && Number(value) <= 10) state[name] = Number(value);
    } else if (name === "edit") {
      const [what, attention, head] = value.split("|");
      if (attention !== undefined) state.edits.push({ what, attention, head: head ? Number(head) : null });
    } else if (NUMBERS.includes(name) && /^\d{1,9}$/.test(value)) state[name] = Number(value);
  }
  return /** @type {State} */ (state);
}

/** The address of a state. @param {State} state */
export function write(state) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (name === "edits") {
      for (const { what, attention, head } of state.edits) parameters.append("edit", [what, attention, head ?? ""].join("|"));
    } else if (value !== START[/** @type {keyof State} */ (name)]) parameters.set(name, value === true ? "1" : String(value));
  }
  // Commas, bars and colons stay readable; lone surrogates become U+FFFD, as in all addresses.
  return `#${parameters.toString().replaceAll("%2C", ",").replaceAll("%7C", "|").replaceAll("%3A", ":")}`;
}

/** Whether the ladder is shown. @param {State} state */
export function onLadder(state) {
  return state.ladder || state.rung != null;
}
