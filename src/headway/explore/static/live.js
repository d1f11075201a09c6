// Requests to the server: another text, an edited model, a file to save.

import { Trace } from "./trace.js";
import { inPage, onServer, reached } from "./source.js";

/** @typedef {import("./state.js").State} State */

const KEPT = 6; // traces; the server keeps a few more

/** The first trace, and requests for others. */
export class Live {
  static async open() {
    const [inside, base] = ["trace", "base"].map((name) => inPage(document, name));
    const first = await Trace.open(inside ?? onServer(content("headway-trace")));
    return new Live(first, base && (await Trace.open(base)));
  }

  /** @param {Trace} first @param {Trace | null} saved  what the trace of this file is compared with */
  constructor(first, saved) {
    this.first = first;
    this.saved = saved;
    this.pending = new AbortController();
    /** @type {Map<string, Promise<Trace>>} */
    this.traces = new Map();
  }

  /** Whether another text or edits can be traced. A page without a model has no token. */
  get canAsk() {
    return content("headway-token") !== "";
  }

  /** What the trace of a state is compared with: the model before the edits, or else another model. @param {State} state */
  async base(state) {
    if (!this.canAsk) return this.saved;
    if (state.edits.length) return this.trace(state, { edited: false });
    return this.first.manifest.other ? this.trace(state, { edited: false, other: true }) : null;
  }

  /** The trace for a state. @param {State} state @param {{edited?: boolean, other?: boolean}} [choice] */
  trace(state, { edited = true, other = false } = {}) {
    const request = { ...this.request(state, edited), other };
    const key = JSON.stringify(request);
    if (!this.canAsk || key === JSON.stringify({ ...this.request(null, true), other: false })) return Promise.resolve(this.first);
    const known = this.traces.get(key);
    if (known) return known;
    this.pending.abort(); // the previous request is no longer needed, and the server can stop
    this.pending = new AbortController();
    const forget = () => this.traces.delete(key);
    const opened = this._post("/trace", request, this.pending.signal)
      .then((response) => response.json())
      .then(({ trace }) => Trace.open(onServer(trace, forget)));
    opened.catch(forget);
    this.traces.set(key, opened);
    for (const old of [...this.traces.keys()].slice(0, -KEPT)) this.traces.delete(old);
    return opened;
  }

  /** This state as one HTML file. @param {State} state @param {string} address */
  async save(state, address) {
    return (await this._post("/export", { ...this.request(state, true), address })).blob();
  }

  /** The request of a state; null: that of the first trace. @param {State | null} state @param {boolean} edited */
  request(state, edited) {
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
    const response = await reached(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Headway-Token": content("headway-token") },
      body: JSON.stringify(body),
      signal,
    });
    if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error ?? `the server answered ${response.status}`);
    return response;
  }
}

/** @param {string} name */
function content(name) {
  return document.querySelector(`meta[name="${name}"]`)?.getAttribute("content") ?? "";
}
