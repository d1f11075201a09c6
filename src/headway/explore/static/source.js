// Sources of the bytes of a trace: the server, by ranges, or this HTML file.

/** @typedef {(begin: number, end: number) => Promise<ArrayBuffer>} Source */

/**
 * A trace on the server. gone: called if the server has deleted it.
 * @param {string} id @param {() => void} [gone] @returns {Source}
 */
export function onServer(id, gone) {
  return async (begin, end) => {
    if (begin === end) return new ArrayBuffer(0);
    const answer = await reached(`/trace/${id}`, { headers: { Range: `bytes=${begin}-${end - 1}` } });
    if (answer.status !== 206) {
      gone?.();
      throw new Error("This trace is no longer available: try again.");
    }
    return answer.arrayBuffer();
  };
}

/**
 * `fetch` with a clear message if the server does not answer.
 * @param {string} path @param {RequestInit} request
 */
export async function reached(path, request) {
  try {
    return await fetch(path, request);
  } catch (error) {
    if (request.signal?.aborted) throw error;
    throw new Error("The explorer does not answer. If it was stopped, start it again and reload this page.");
  }
}

/**
 * A trace inside this file, "trace" or "base", in pieces of base64 without padding; only the requested bytes are
 * decoded.
 * @param {ParentNode} page @param {string} name @returns {Source | null}
 */
export function inPage(page, name) {
  const pieces = [...page.querySelectorAll(`script[data-of="${name}"]`)];
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
