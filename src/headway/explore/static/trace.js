// Reads the trace file (safetensors with Headway's manifest) by ranges of rows.

import { Head, step } from "./attention.js";

/** @typedef {import("./source.js").Source} Source */
/** @typedef {{display: string, id?: number, bytes?: string}} Token */
/** @typedef {{data: Float32Array | Float64Array | Uint8Array | Int32Array, rows: number, columns: number}} Matrix */
/**
 * @typedef {{
 *   scale: number, softcap: number | null, normalizer: string, mask: [number | null, number | null] | null, offset: number | number[],
 *   heads: number, kv_heads: number, allowed: string | null, bias: string | null, recomputable: boolean,
 *   additive?: string,
 * }} Facts
 */
/** The numbers of a head; null where nothing counts. @typedef {Record<string, number | null>} Measured */
/** @typedef {{keys: number, largest: number, total: number, context: number[], result: number[]}} Running */
/** @typedef {{equals: string, products: Record<string, number>, scores: Record<string, number>, running: Running[][]}} Difference */
/** @typedef {{name: string, idea: string, equation: string, source: string, dropout: number, parameters: string[],
 *   differs: Difference | null}} Rung */
/** @typedef {{what: string, attention: string, head: number | null}} Edit */
/** @typedef {{name: string, shown: string[], label: string, heads: "any" | "all" | "others", without: string | null}} EditKind */
/**
 * @typedef {{
 *   kind: string, title: string, other?: string, text: string, tokens: Token[], key_tokens?: Token[], steps: [string, number[]][],
 *   attentions: Record<string, Facts>, heads?: Record<string, {queries: number, repeated: number | null, heads: Measured[]}>, step?: number | null, path?: string | null, mask?: number | null, validation?: number | null, rung?: string | null,
 *   model?: Record<string, any>, vocabulary?: string[], changes?: Record<string, number[]>,
 *   overview: number, edits?: Edit[], edit_kinds?: EditKind[], written?: Token[], left_out?: string[],
 *   sampling?: {write: number, temperature: number, top_k: number | null, seed: number},
 *   inputs?: Token[], ladder?: {tokens: Token[], key_tokens?: Token[], text: string, rungs: Rung[]},
 * }} Manifest
 */
/** @typedef {{name: string, title: string, heads: Head[]}} Layer */

const KINDS = { F32: Float32Array, F64: Float64Array, BOOL: Uint8Array, U8: Uint8Array, I32: Int32Array };
const KEPT = 96 * 2 ** 20; // bytes that are cached per trace
const COMPLETE = 2 ** 18; // bytes; smaller tensors are fetched completely

export class Trace {
  /** @param {Source} source */
  static async open(source) {
    const length = Number(new DataView(await source(0, 8)).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(await source(8, 8 + length)));
    return new Trace(source, header, 8 + length);
  }

  /** @param {Source} source @param {Record<string, any>} header @param {number} start */
  constructor(source, header, start) {
    this.source = source;
    this.header = header;
    this.start = start;
    /** @type {Manifest} */
    this.manifest = JSON.parse(header.__metadata__.headway);
    // Names come from the file, so a name such as `constructor` must not be found where it is not.
    const { attentions, heads = {}, changes = {} } = this.manifest;
    for (const named of [header, attentions, heads, changes]) Object.setPrototypeOf(named, null);
    /** @type {Map<string, number[]>} */
    this.shapes = new Map(this.manifest.steps);
    /** @type {Map<string, Promise<ArrayBuffer>>} */
    this.cache = new Map();
    this.bytes = 0;
    const names = new Set([...this.shapes.keys()].filter((name) => name.endsWith(".weights")).map((name) => name.slice(0, -".weights".length)));
    for (const name of Object.keys(this.manifest.attentions)) names.add(name);
    if (this.shapes.has("weights")) names.add(""); // a trace of a single attention
    this.layers = this._layers([...names].filter((name) => !name.startsWith("ladder.")));
    const rungs = this.manifest.ladder?.rungs ?? [];
    this.rungs = rungs.map(({ name }) => ({
      name: `ladder.${name}`,
      title: name,
      heads: this._heads([...names].filter((one) => `${one}.`.startsWith(`ladder.${name}.`))),
    }));
  }

  /** Whether a tensor is in the file. @param {string} name */
  has(name) {
    return name in this.header;
  }

  /** The head of an attention with this number. @param {string} attention @param {number} index */
  head(attention, index) {
    return new Head(this, attention, index);
  }

  /** The tokens of the queries and of the keys of an attention. @param {string} attention */
  tokens(attention) {
    const { key_tokens: source = [], inputs } = this.manifest; // inputs: of a decoder, if there is one
    if (inputs && attention.startsWith("encoder.")) return [source, source];
    if (inputs && attention.endsWith("self_attention")) return [inputs, inputs];
    const own = attention.startsWith("ladder.") ? this.manifest.ladder : this.manifest;
    const tokens = own?.tokens ?? [];
    return [tokens, own?.key_tokens ?? tokens];
  }

  /**
   * Some rows of a tensor's last two axes; `index` counts along all axes before them.
   * @param {string} name @param {number} [index] @param {number} [from] @param {number} [to]
   * @returns {Promise<Matrix>}
   */
  async matrix(name, index = 0, from = 0, to = Infinity) {
    const { dtype, shape, data_offsets } = this.header[name];
    const [rows, columns] = shape.length > 1 ? shape.slice(-2) : [1, ...shape];
    const kind = KINDS[/** @type {keyof typeof KINDS} */ (dtype)];
    const size = kind.BYTES_PER_ELEMENT * columns;
    const last = Math.min(to, rows);
    const count = shape.slice(0, -2).reduce((/** @type {number} */ product, /** @type {number} */ one) => product * one, 1);
    if (index >= count || from > last) throw new Error(`${name} has no rows ${from} to ${last} of matrix ${index}`);
    const [begin, end] = [(index * rows + from) * size, (index * rows + last) * size];
    const all = data_offsets[1] - data_offsets[0];
    const bytes = all <= COMPLETE || this.cache.has(`${data_offsets[0]} ${data_offsets[1]}`)
      ? (await this._bytes(data_offsets[0], data_offsets[1])).slice(begin, end)
      : await this._bytes(data_offsets[0] + begin, data_offsets[0] + end);
    return { data: new kind(bytes), rows: last - from, columns };
  }

  /** Fetch a tensor completely, so that many small reads from it are fast. @param {string} name */
  async load(name) {
    const [begin, end] = this.header[name].data_offsets;
    await this._bytes(begin, end);
  }

  /** @param {number} begin @param {number} end @returns {Promise<ArrayBuffer>} */
  _bytes(begin, end) {
    const key = `${begin} ${end}`;
    const known = this.cache.get(key);
    if (known) return known;
    if (this.bytes > KEPT) {
      this.cache.clear();
      this.bytes = 0;
    }
    this.bytes += end - begin;
    const bytes = this.source(this.start + begin, this.start + end);
    this.cache.set(key, bytes);
    bytes.catch(() => this.cache.delete(key));
    return bytes;
  }

  /** @param {string[]} names @returns {Layer[]} */
  _layers(names) {
    /** @type {Map<string, string[]>} */
    const groups = new Map();
    for (const name of names) {
      // In a translation the attentions of a block belong to different sentences.
      const separate = Boolean(this.manifest.inputs);
      const layer = (!separate && /^(.*blocks\.\d+)\./.exec(name)?.[1]) || name;
      groups.set(layer, [...(groups.get(layer) ?? []), name]);
    }
    return [...groups].map(([name, attentions], i) => ({
      name,
      title: this.manifest.inputs ? displayName(name) : name.includes("blocks.") ? `Layer ${i}` : name || "attention",
      heads: this._heads(attentions),
    }));
  }

  /** @param {string[]} attentions */
  _heads(attentions) {
    const all = attentions.flatMap((name) => {
      const facts = this.manifest.attentions[name];
      const shape = this.shapes.get(step(name, facts ? "queries" : "weights")) ?? [1, 1];
      const count = shape.slice(0, -2).reduce((product, size) => product * size, 1);
      return Array.from({ length: count }, (_, index) => new Head(this, name, index));
    });
    all.forEach((head, i) => {
      const heads = head.facts?.heads ?? 1;
      // With several texts the first number is that of the text.
      const many = head.facts && all.length > heads && all.every((one) => one.attention === head.attention);
      head.label = many ? `${Math.floor(i / heads)}.${i % heads}` : String(i);
    });
    return all;
  }
}

/** A short name of "decoder.blocks.0.cross_attention". @param {string} name */
function displayName(name) {
  const [side, ...rest] = name.split(".");
  const kind = rest.at(-1) === "self_attention" ? "itself" : "source";
  return `${side}${rest.length > 1 ? ` ${rest[1]}` : ""} → ${kind}`;
}
