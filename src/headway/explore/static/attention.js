// One head: its steps come from the file, or are recomputed from queries and keys in double
// precision. This repeats attention/formula.py for display; tests/explore compares it with the
// engine.

/** @typedef {import("./trace.js").Trace} Trace */
/** @typedef {import("./trace.js").Facts} Facts */
/** @typedef {import("./trace.js").Matrix} Matrix */
/** @typedef {Matrix & {from: number, recomputed: boolean}} Rows */
/** @typedef {{rate: number, seed: number} | null} Training */

const ORDER = ["scores", "scaled", "capped", "masked", "weights", "dropped", "context"];
const ROLES = ["queries", "keys", "values"];
const CHAINS = ROLES.map((role) => [`unnormalized_${role}`, `unrotated_${role}`, role]);

export class Head {
  /** @param {Trace} trace @param {string} attention @param {number} index */
  constructor(trace, attention, index) {
    this.trace = trace;
    this.attention = attention;
    this.index = index;
    /** @type {Facts | undefined} */
    this.facts = trace.manifest.attentions[attention];
    /** @type {[string, Promise<Map<string, Matrix>>] | null} */
    this.last = null;
    const [queries, keys] = ["queries", "keys"].map((role) => trace.shapes.get(this.name(role))?.at(-2) ?? 0);
    const [rows, columns] = trace.shapes.get(this.name("weights"))?.slice(-2) ?? [queries, keys];
    /** How many queries and keys. @type {[number, number]} */
    this.size = [rows, columns];
    const { mask = this.inGPT ? [0, null] : null, offset = 0 } = this.facts ?? {}; // a rung in a GPT is causal
    const free = trace.manifest.edits?.some((edit) =>
      edit.what === "no mask" && edit.attention === attention && (edit.head == null || edit.head === index));
    this.label = ""; // its name in the layer
    const [least, most] = (free ? null : mask) ?? [null, null];
    this.least = least ?? -Infinity; // the allowed cells have least <= query - key <= most
    this.most = most ?? Infinity;
    this.offset = Array.isArray(offset) ? Number(offset.flat(Infinity)[0]) : offset;
  }

  /** The steps that are recorded or can be recomputed, in order. @returns {string[]} */
  get steps() {
    const facts = this.facts;
    return ORDER.filter((name) => {
      if (this.trace.has(this.name(name))) return true;
      if (!facts?.recomputable) return false;
      if (this.trace.has(this.name("weights")) && name !== "context") return false; // not recorded
      if (name === "capped") return facts.softcap != null;
      if (name === "masked") return facts.mask || facts.allowed || facts.bias;
      return name !== "dropped" && (name !== "context" || this.operand("values"));
    });
  }

  /** The complete path: from the vectors that the attention reads to the next token. @returns {string[]} */
  get path() {
    const { manifest } = this.trace;
    const after = [
      (this.trace.has(this.name("W_output")) || this.trace.has(this.name("output"))) && "output",
      this.trace.has(this.stream) && "stream",
      this.inGPT && this.trace.has("logits") && manifest.vocabulary && "next",
    ];
    const chains = ROLES.flatMap((role) => this.chain(role));
    return /** @type {string[]} */ ([this.inputs && "x", ...chains, ...this.steps, ...after].filter(Boolean));
  }

  /** The recorded steps that lead to the queries, keys or values that the scores use, in order. @param {string} role */
  chain(role) {
    return CHAINS[ROLES.indexOf(role)].filter((name) => this.trace.has(this.name(name)));
  }

  /** What the attention reads: a tensor (tokens, d_in), if it was recorded. @returns {string | null} */
  get inputs() {
    if (this.attention.startsWith("ladder.")) return "inputs";
    const normed = `${this.block}.attention_norm`;
    const name = this.trace.manifest.model?.norm?.placement === "after" ? this.before : normed;
    return this.trace.has(name) ? name : null;
  }

  /** The name of its layer in a GPT. */
  get block() {
    return this.attention.replace(/\.attention\b.*/, "");
  }

  /** The residual stream before the layer. */
  get before() {
    const number = Number(this.block.split(".").at(-1));
    return number ? `blocks.${number - 1}.after_mlp` : "embedded";
  }

  /** The residual stream after the attention. */
  get stream() {
    return `${this.block}.after_attention`;
  }

  /** A learned matrix of this head, as in x @ W, or a bias; null if it is not in the file. @param {string} name @returns {Promise<Matrix | null>} */
  async learned(name) {
    const tensor = this.name(name);
    if (!this.trace.has(tensor)) return null;
    const index = Math.floor(this.index / (/_(key|value)$/.test(name) ? this.group : 1));
    if (name.startsWith("W_")) return this.trace.matrix(tensor, index);
    return name === "b_output" ? this.trace.matrix(tensor) : this.trace.matrix(tensor, 0, index, index + 1);
  }

  /** The number of query heads that share one head of keys and values. */
  get group() {
    return this.facts ? this.facts.heads / this.facts.kv_heads : 1;
  }

  /** Whether it is a part of a GPT. */
  get inGPT() {
    return this.trace.manifest.kind === "model" && !this.attention.startsWith("ladder.");
  }

  /** The name of a step's tensor. @param {string} name */
  name(name) {
    return step(this.attention, name);
  }

  /**
   * Where queries, keys or values are: in a tensor or, on the first rungs, the inputs.
   * @param {string} role @returns {{name: string, index: number} | null}
   */
  operand(role) {
    const name = this.name(role);
    if (this.trace.has(name)) {
      return { name, index: Math.floor(this.index / (role.endsWith("queries") ? 1 : this.group)) };
    }
    if (role !== "values" && this.rung === "fixed") return null;
    return this.inputs ? { name: this.inputs, index: 0 } : null;
  }

  /** The rung of the ladder that this attention is. @returns {string} */
  get rung() {
    const [first, second] = this.attention.split(".");
    return first === "ladder" ? second : (this.trace.manifest.rung ?? "multihead");
  }

  /**
   * Some rows of a step. With `training`, dropout is applied as in training.
   * @param {string} step @param {number} [from] @param {number} [to] @param {Training} [training]
   * @returns {Promise<Rows>}
   */
  async rows(step, from = 0, to = Infinity, training = null) {
    const last = Math.min(to, this.size[0]);
    if (step === "output") return { ...(await this._output(from, last, training)), from, recomputed: this.trace.has(this.name("W_output")) };
    const shared = { x: this.inputs, stream: this.stream }[step]; // of all heads
    if (shared) return { ...(await this.trace.matrix(shared, 0, from, to)), from, recomputed: false };
    if (CHAINS.flat().includes(step)) return { ...(await this.read(step, from, to)), from, recomputed: false };
    const changes = training && (step === "dropped" || step === "context");
    if (!changes && this.trace.has(this.name(step))) {
      return { ...(await this.trace.matrix(this.name(step), this.index, from, last)), from, recomputed: false };
    }
    const key = `${from} ${last} ${training?.rate} ${training?.seed}`;
    if (this.last?.[0] !== key) this.last = [key, this._recomputed(from, last, training)];
    const matrix = (await this.last[1]).get(step);
    if (!matrix) throw new Error(`${this.name(step)} is not in this file`);
    return { ...matrix, from, recomputed: true };
  }

  /** Whether a query may attend to a key or to any key in a range, by the manifest. @param {number} row @param {number} from @param {number} [to] */
  allowed(row, from, to = from) {
    const query = row + this.offset;
    return query - from >= this.least && query - to <= this.most;
  }

  /** @param {number} from @param {number} to @param {Training} training */
  async _recomputed(from, to, training) {
    const { facts, trace } = this;
    /** @type {Map<string, Matrix>} */
    const matrices = new Map();
    const [rows, columns] = [to - from, this.size[1]];
    const add = (/** @type {string} */ step, /** @type {number} */ columns) => {
      const matrix = { data: new Float64Array(rows * columns), rows, columns };
      matrices.set(step, matrix);
      return matrix.data;
    };
    let weights;
    if (trace.has(this.name("weights"))) {
      weights = (await trace.matrix(this.name("weights"), this.index, from, to)).data;
    } else {
      if (!facts?.recomputable) throw new Error(`${this.name("weights")} is not in this file`);
      const [queries, keys] = [await this.read("queries", from, to), await this.read("keys")];
      const allowed = facts.allowed && (await this._broadcast(facts.allowed, from, to));
      const bias = facts.bias && (await this._broadcast(facts.bias, from, to));
      const [scores, scaled] = [add("scores", columns), add("scaled", columns)];
      const capped = facts.softcap == null ? scaled : add("capped", columns);
      const masked = add("masked", columns);
      weights = add("weights", columns);
      const width = queries.columns;
      for (let i = 0; i < rows; i++) {
        let most = -Infinity;
        for (let j = 0; j < columns; j++) {
          const at = i * columns + j;
          let dot = 0;
          for (let c = 0; c < width; c++) dot += queries.data[i * width + c] * keys.data[j * width + c];
          scores[at] = dot;
          scaled[at] = dot * facts.scale;
          if (facts.softcap != null) capped[at] = facts.softcap * Math.tanh(scaled[at] / facts.softcap);
          const may = allowed ? allowed(i, j) : this.allowed(from + i, j);
          masked[at] = may ? capped[at] + (bias ? bias(i, j) : 0) : -Infinity;
          if (masked[at] > most) most = masked[at];
        }
        let total = 0;
        for (let at = i * columns; at < (i + 1) * columns; at++) {
          weights[at] = most === -Infinity ? 0 : Math.exp(masked[at] - most);
          total += weights[at];
        }
        if (total) for (let at = i * columns; at < (i + 1) * columns; at++) weights[at] /= total;
      }
    }
    if (training) {
      const dropped = add("dropped", columns);
      for (let at = 0; at < rows * columns; at++) {
        const [row, key] = [from + Math.floor(at / columns), at % columns];
        dropped[at] = kept(training, [0, this.index, row, key]) ? weights[at] / (1 - training.rate) : 0;
      }
      weights = dropped;
    }
    if (!this.operand("values")) return matrices;
    const values = await this.read("values");
    const context = add("context", values.columns);
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        const weight = weights[i * columns + j];
        if (!weight) continue;
        for (let c = 0; c < values.columns; c++) {
          context[i * values.columns + c] += weight * values.data[j * values.columns + c];
        }
      }
    }
    return matrices;
  }

  /** This head's part of the output, context @ W_output; without the matrix, the output of all heads. @param {number} from @param {number} to @param {Training} training */
  async _output(from, to, training) {
    const matrix = await this.learned("W_output");
    if (!matrix) return this.trace.matrix(this.name("output"), 0, from, to);
    const context = await this.rows("context", from, to, training);
    if (!this.edits("output").length) return times(context, matrix);
    const data = new Float64Array(context.rows * matrix.columns);
    for (let i = 0; i < context.rows; i++) {
      data.set(context.data.subarray(i * context.columns, (i + 1) * context.columns), i * matrix.columns + this.index * context.columns);
    }
    return { data, rows: context.rows, columns: matrix.columns };
  }

  /** The edits that change a step of this head. @param {string} step */
  edits(step) {
    const { edits = [], edit_kinds = [] } = this.trace.manifest;
    return edits.filter((edit) => {
      const kind = edit_kinds.find(({ name }) => name === edit.what);
      const hit = edit.head == null || (edit.head === this.index) === (kind?.heads !== "others");
      return edit.attention === this.attention && hit && Boolean(kind?.shown.includes(step));
    });
  }

  /** Rows of queries, keys or values, or of a step that leads to them. @param {string} role @param {number} [from] @param {number} [to] */
  read(role, from, to) {
    const place = this.operand(role);
    if (!place) throw new Error(`the ${role} are not in this file`);
    return this.trace.matrix(place.name, place.index, from, to);
  }

  /** A mask or bias that broadcasts to (heads, queries, keys). @param {string} name @param {number} from @param {number} to */
  async _broadcast(name, from, to) {
    /** @type {number[]} */
    const shape = this.trace.header[name].shape;
    const count = this.facts?.heads ?? 1;
    const texts = shape.slice(0, -3).reduce((a, b) => a * b, 1);
    const heads = shape.at(-3) ?? 1;
    const text = texts === 1 ? 0 : Math.floor(this.index / count);
    const one = shape.at(-2) === 1;
    const part = await this.trace.matrix(name, text * heads + (heads === 1 ? 0 : this.index % count), one ? 0 : from, one ? 1 : to);
    return (/** @type {number} */ row, /** @type {number} */ key) =>
      part.data[(one ? 0 : row) * part.columns + (part.columns === 1 ? 0 : key)];
  }
}

/** The product of two matrices, in double precision. @param {Matrix} one @param {Matrix} other */
export function times(one, other) {
  const [rows, inner, columns] = [one.rows, one.columns, other.columns];
  const data = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let c = 0; c < inner; c++) {
      const factor = one.data[i * inner + c];
      for (let j = 0; j < columns; j++) data[i * columns + j] += factor * other.data[c * columns + j];
    }
  }
  return { data, rows, columns };
}

/**
 * Whether a cell survives dropout: the hash of attention/dropout.py, in the same 32-bit integers.
 * @param {{rate: number, seed: number}} training @param {number[]} coordinates
 */
export function kept({ rate, seed }, coordinates) {
  return hashed([seed, ...coordinates]) >= Math.floor(rate * 2 ** 32) - 2 ** 31;
}

/** The hash of integers, from -2^31 to 2^31 - 1. @param {number[]} parts */
export function hashed(parts) {
  return parts.reduce((state, part) => mixed(state ^ mixed((part + 0x9e3779b9) | 0)), 0);
}

/** @param {number} x */
function mixed(x) {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return x ^ (x >>> 16);
}

/** The full name of a step of an attention. @param {string} attention @param {string} name */
export function step(attention, name) {
  return attention ? `${attention}.${name}` : name;
}
