// Where the bytes of a trace come from: the server, by ranges, or this very file.

/** @typedef {(begin: number, end: number) => Promise<ArrayBuffer>} Source */

/**
 * A trace on the server that sent the page. gone: told when the server has it no more.
 * @param {string} id @param {() => void} [gone] @returns {Source}
 */
export function onServer(id, gone) {
  return async (begin, end) => {
    if (begin === end) return new ArrayBuffer(0);
    const answer = await reached(`/trace/${id}`, { headers: { Range: `bytes=${begin}-${end - 1}` } });
    if (answer.status !== 206) {
      gone?.();
      throw new Error("The explorer had forgotten this trace: try again.");
    }
    return answer.arrayBuffer();
  };
}

/**
 * `fetch`, with a sentence for when nobody is there.
 * @param {string} path @param {RequestInit} request
 */
export async function reached(path, request) {
  try {
    return await fetch(path, request);
  } catch (error) {
    if (request.signal?.aborted) throw error;
    throw new Error("The explorer does not answer. If it was ended, start it again and load this page anew.");
  }
}

/**
 * The trace that this file carries, in pieces of base64, each a whole number of bytes: only what
 * is asked for is decoded.
 * @param {ParentNode} page @returns {Source | null}
 */
export function inPage(page) {
  const pieces = [...page.querySelectorAll("script[data-bytes]")];
  if (!pieces.length) return null;
  const size = Number(pieces[0].getAttribute("data-bytes"));
  return async (begin, end) => {
    const bytes = new Uint8Array(end - begin);
    for (let at = begin; at < end; ) {
      const piece = Math.floor(at / size);
      const [from, to] = [at - piece * size, Math.min(end - piece * size, size)];
      const text = pieces[piece].textContent ?? "";
      const skipped = from % 3; // base64 has four characters for three bytes
      const part = atob(text.slice(((from - skipped) / 3) * 4, Math.ceil(to / 3) * 4));
      for (let i = 0; i < to - from; i++) bytes[at - begin + i] = part.charCodeAt(skipped + i);
      at = piece * size + to;
    }
    return bytes.buffer;
  };
}
