// Where one is and what one changed: all of it stands in the address, after the #.

/** @typedef {import("./trace.js").Edit} Edit */
/**
 * @typedef {{
 *   text: string | null, edits: Edit[], temperature: number | null, top_k: number | null, seed: number,
 *   ladder: boolean, rung: string | null, diff: boolean,
 *   layer: number | null, head: number | null, step: string | null, cell: [number, number] | null,
 *   tensor: string | null, part: number | null, at: [number, number] | null, query: number | null,
 *   lines: boolean, table: boolean, training: number | null,
 * }} State
 */

/** @type {State} */
export const START = {
  text: null, edits: [], temperature: null, top_k: null, seed: 0, ladder: false, rung: null, diff: false,
  layer: null, head: null, step: null, cell: null, tensor: null, part: null, at: null, query: null,
  lines: false, table: false, training: null,
};

const NUMBERS = ["top_k", "seed", "layer", "head", "part", "query", "training"];

/** The state of an address; what it does not say, or says wrongly, is as at the start. @param {string} hash */
export function read(hash) {
  const said = new URLSearchParams(hash.replace(/^#/, ""));
  /** @type {Record<string, any>} */
  const found = { ...START, edits: [] };
  for (const [name, value] of said) {
    if (["text", "rung", "step", "tensor"].includes(name)) found[name] = value;
    else if (["diff", "lines", "table", "ladder"].includes(name)) found[name] = value === "1";
    else if (["cell", "at"].includes(name)) {
      const pair = value.split(",").map(Number);
      if (pair.length === 2 && pair.every((n) => Number.isInteger(n) && n >= 0)) found[name] = pair;
    } else if (name === "temperature") {
      if (value !== "" && Number(value) >= 0 && Number(value) <= 10) found[name] = Number(value);
    } else if (name === "edit") {
      const [what, attention, head] = value.split("|");
      if (attention !== undefined) found.edits.push({ what, attention, head: head ? Number(head) : null });
    } else if (NUMBERS.includes(name) && /^\d{1,9}$/.test(value)) found[name] = Number(value);
  }
  return /** @type {State} */ (found);
}

/** The address of a state. @param {State} state */
export function write(state) {
  const said = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (name === "edits") {
      for (const { what, attention, head } of state.edits) said.append("edit", [what, attention, head ?? ""].join("|"));
    } else if (value !== START[/** @type {keyof State} */ (name)]) said.set(name, value === true ? "1" : String(value));
  }
  // Readable where it may be; halves of surrogate pairs become U+FFFD, as everywhere in addresses.
  return `#${said.toString().replaceAll("%2C", ",").replaceAll("%7C", "|")}`;
}

/** Whether the ladder is looked at. @param {State} state */
export function onLadder(state) {
  return state.ladder || state.rung != null;
}
