// Asking the server: another text, a changed model, a file to keep.

import { Trace } from "./trace.js";
import { inPage, onServer, reached } from "./source.js";

/** @typedef {import("./state.js").State} State */
/** @typedef {import("./trace.js").Manifest} Manifest */

const KEPT = 6; // answers: the server keeps a few more

/** What the page was opened on, and how to get another answer. */
export class Live {
  static async open() {
    const inside = inPage(document);
    const first = await Trace.open(inside ?? onServer(content("headway-trace")));
    return new Live(first, !inside);
  }

  /** @param {Trace} first @param {boolean} served */
  constructor(first, served) {
    this.first = first;
    this.served = served;
    this.asking = new AbortController();
    /** @type {Map<string, Promise<Trace>>} */
    this.answers = new Map();
  }

  /** Whether the model can be changed and asked again. */
  get canAsk() {
    return this.served && this.first.manifest.kind !== "trace";
  }

  /** The trace for a state. @param {State} state @param {{edited?: boolean}} [choice] */
  trace(state, { edited = true } = {}) {
    const question = this.question(state, edited);
    if (!this.canAsk || same(question, this.question(null, true))) return Promise.resolve(this.first);
    const key = JSON.stringify(question);
    const known = this.answers.get(key);
    if (known) return known;
    this.asking.abort(); // nobody waits for another answer any more, and the server can stop
    this.asking = new AbortController();
    const forget = () => this.answers.delete(key);
    const answer = this._post("/trace", question, this.asking.signal)
      .then((found) => found.json())
      .then(({ trace }) => Trace.open(onServer(trace, forget)));
    answer.catch(forget);
    this.answers.set(key, answer);
    for (const old of [...this.answers.keys()].slice(0, -KEPT)) this.answers.delete(old);
    return answer;
  }

  /** This state as one HTML file. @param {State} state @param {string} address */
  async save(state, address) {
    const found = await this._post("/export", { ...this.question(state, true), address });
    return found.blob();
  }

  /** What to ask; null: what the first trace answers. @param {State | null} state @param {boolean} edited */
  question(state, edited) {
    const { kind, text, sampling } = this.first.manifest;
    const model = kind === "model";
    return {
      text: state?.text ?? text,
      edits: state && edited && model ? state.edits : [],
      write: sampling?.write ?? 0,
      temperature: state?.temperature ?? sampling?.temperature ?? 1,
      top_k: state?.top_k ?? sampling?.top_k ?? null,
      seed: state?.seed ?? 0,
    };
  }

  /** @param {string} path @param {object} body @param {AbortSignal} [signal] */
  async _post(path, body, signal) {
    const found = await reached(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Headway-Token": content("headway-token") },
      body: JSON.stringify(body),
      signal,
    });
    if (!found.ok) throw new Error((await found.json().catch(() => ({}))).error ?? `the server said ${found.status}`);
    return found;
  }
}

/** @param {object} one @param {object} other */
function same(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}

/** @param {string} name */
function content(name) {
  return document.querySelector(`meta[name="${name}"]`)?.getAttribute("content") ?? "";
}
