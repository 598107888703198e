// An auditor of ledger files for browsers and Node >= 20: no dependency, one module.
//
//   import { audit } from "./verify.js"
//   const findings = await audit(bytesOfTheFile)      // [{id, check, good, detail}, ...]
//
// The verdicts are those of the Python package beside it, on every vector and every file: what is
// canonical, which keys and signatures count, what is valid, what follows, what is proven.
// Integers are BigInt, since they go to 2^63-1. Signatures are WebCrypto's, behind our own gate.

const subtle = globalThis.crypto.subtle;
const utf8 = new TextEncoder();
const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export class BadEntry extends Error {}
class Broken extends Error {}
const bad = (reason) => { throw new BadEntry(reason); };
const broken = (reason) => { throw new Broken(reason); };

// --- bytes --------------------------------------------------------------------------------------

export const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
export const unhex = (digits) => Uint8Array.from(digits.match(/../g) ?? [], (d) => parseInt(d, 16));
const equal = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);
const sha256 = async (bytes) => new Uint8Array(await subtle.digest("SHA-256", bytes));

export function concat(...parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { whole.set(part, at); at += part.length; }
  return whole;
}

function same(a, b) {
  if (a instanceof Uint8Array) return b instanceof Uint8Array && equal(a, b);
  if (Array.isArray(a)) return Array.isArray(b) && a.length === b.length && a.every((x, i) => same(x, b[i]));
  return a === b;
}

// --- canonical encoding: a subset of msgpack in which every value has one encoding ---------------

export const ENTRY_MAX = 8192, BODY_MAX = 4096, TERMS_MAX = 3840;
const ARRAY_MAX = 256, TEXT_MAX = 256, DEPTH_MAX = 8, UINT_MAX = 2n ** 63n - 1n;

export function decode(bytes, limit = ENTRY_MAX) {
  if (bytes.length > limit) bad(`${bytes.length} bytes where ${limit} are allowed`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = 0;
  const take = (count) => {
    if (at + count > bytes.length) bad("cut short");
    at += count;
    return bytes.subarray(at - count, at);
  };
  const number = (size, least) => {
    take(size);
    const from = at - size;
    const value = size === 1 ? BigInt(view.getUint8(from)) : size === 2 ? BigInt(view.getUint16(from))
      : size === 4 ? BigInt(view.getUint32(from)) : view.getBigUint64(from);
    if (value < least) bad("not the shortest encoding");
    if (value > UINT_MAX) bad("an integer outside 0..2^63-1");
    return value;
  };
  const string = (size) => {
    if (size > TEXT_MAX) bad("a text too long");
    let value;
    try { value = text.decode(take(size)); } catch { bad("text that is not UTF-8"); }
    return value.normalize("NFC") === value ? value : bad("text that is not NFC");
  };
  const array = (size, depth) => {
    if (depth === 0) bad(`more than ${DEPTH_MAX} arrays deep`);
    if (size > ARRAY_MAX) bad("an array too long");
    const items = [];
    while (items.length < size) items.push(value(depth - 1));
    return items;
  };
  const value = (depth) => {
    const type = take(1)[0];
    if (type < 0x80) return BigInt(type);
    if (type >= 0x90 && type < 0xa0) return array(type & 15, depth);
    if (type >= 0xa0 && type < 0xc0) return string(type & 31);
    switch (type) {
      case 0xc4: return take(Number(number(1, 0n)));
      case 0xc5: return take(Number(number(2, 256n)));
      case 0xc6: return take(Number(number(4, 65536n)));
      case 0xcc: return number(1, 128n);
      case 0xcd: return number(2, 256n);
      case 0xce: return number(4, 65536n);
      case 0xcf: return number(8, 2n ** 32n);
      case 0xd9: return string(Number(number(1, 32n)));
      case 0xda: return string(Number(number(2, 256n)));
      case 0xdc: return array(Number(number(2, 16n)), depth);
      default: return bad(`type ${type} is not in the subset`);
    }
  };
  const whole = value(DEPTH_MAX);
  return at === bytes.length ? whole : bad("bytes after the end");
}

/** The one encoding of unsigned integers (BigInt) and byte strings below 256 bytes, in an array below 16. */
export function encodeRow(items) {
  const big = (value, size) => Uint8Array.from({ length: size }, (_, i) => Number((value >> BigInt(8 * (size - 1 - i))) & 255n));
  const encoded = items.map((item) => {
    if (item instanceof Uint8Array) return concat(new Uint8Array([0xc4, item.length]), item);
    if (item < 128n) return big(item, 1);
    const [type, size] = item < 2n ** 8n ? [0xcc, 1] : item < 2n ** 16n ? [0xcd, 2] : item < 2n ** 32n ? [0xce, 4] : [0xcf, 8];
    return concat(new Uint8Array([type]), big(item, size));
  });
  return concat(new Uint8Array([0x90 | items.length]), ...encoded);
}

// --- keys: one rule for signatures, whatever library lies below ----------------------------------

const P = 2n ** 255n - 19n, L = 2n ** 252n + 27742317777372353535851937790883648493n;
const Y8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022n;
const SMALL_ORDER_Y = new Set([0n, 1n, P - 1n, Y8, P - Y8]);
const KEYS_KEPT_MAX = 8192;
const imported = new Map();
const little = (bytes) => BigInt("0x" + hex(Uint8Array.from(bytes).reverse()));

function isSoundPoint(bytes) {
  const y = little(bytes) & (2n ** 255n - 1n);
  return y < P && !SMALL_ORDER_Y.has(y);
}

const isSoundKey = (key) => key.length === 32 && isSoundPoint(key);

/** Whether *signature* is *key*'s over *message*. */
export async function verify(key, message, signature) {
  if (!isSoundKey(key) || signature.length !== 64) return false;
  if (!isSoundPoint(signature.subarray(0, 32))) return false;
  if (little(signature.subarray(32)) >= L) return false;
  const name = hex(key);
  try {
    if (!imported.has(name)) {
      if (imported.size >= KEYS_KEPT_MAX) imported.clear();
      imported.set(name, await subtle.importKey("raw", key, "Ed25519", false, ["verify"]));
    }
    return await subtle.verify("Ed25519", imported.get(name), signature, message);
  } catch (error) {
    if (error instanceof DOMException && error.name !== "NotSupportedError") return false; // no point
    throw error; // an engine without Ed25519: say so rather than call everything forged
  }
}

const domain = (name) => utf8.encode(`mesh-ledger/1/${name}\0`);
const AUTHOR = domain("author"), TERMS = domain("terms"), USE = domain("use"), KEYOP = domain("keyop"), WITNESS = domain("witness");

// --- words: what each field may hold, in wire order ----------------------------------------------

const KINDS = ["", "ALLOC", "USE", "SETTLE", "VOID", "CLAIM", "DISPUTE", "RULING", "REFUND", "LINE",
  "KEYOP", "HEAD", "FORKPROOF"];
const TERMED = new Set(["ALLOC", "USE", "SETTLE", "VOID", "CLAIM", "RULING"]);
const GENESIS = new Uint8Array(32), NO_SIGNATURE = new Uint8Array(64);

const uint = (top = UINT_MAX) => (v) => typeof v === "bigint" && v <= top;
const sized = (...lengths) => (v) => v instanceof Uint8Array && lengths.includes(v.length);
const atMost = (length) => (v) => v instanceof Uint8Array && v.length <= length;
const exactly = (wanted) => (v) => v === wanted;
const many = (rule, most) => (v) => Array.isArray(v) && v.length <= most && v.every(rule);
const row = (...rules) => (v) => Array.isArray(v) && v.length === rules.length && rules.every((r, i) => r(v[i]));
const name = (v) => typeof v === "string" && /^[ -~]{1,64}$/.test(v);
const cid = (v) => sized(36)(v) && v[0] === 1 && v[1] < 0x80 && v[2] === 0x12 && v[3] === 0x20;
const key = sized(32), one = exactly(1n);

const ENTRY = { body: atMost(ENTRY_MAX), sig: sized(64) };
const BODY = {
  version: one, net: sized(8), kind: uint(), author: sized(0, 32), seq: uint(), prev: key, hlc: uint(),
  posted: uint(), pending: uint(), peer: sized(0, 32), terms: atMost(TERMS_MAX), peer_sig: sized(0, 64),
  ext: (v) => Array.isArray(v) && v.length === 0,
};
const FIXED = { // what an ALLOC fixes, as against what the run or an arbiter decides
  version: one, nonce: sized(16), fence: uint(), seller: key, buyer: key, job: cid, module: cid,
  inputs: many(cid, 48), meter: name, unit: exactly("uC/Gfuel"), price: uint(), fee: uint(),
  reserve: uint(), deadline_ms: uint(), grace_ms: uint(), arbiter: sized(0, 32),
};
const DEAL = {
  version: one, nonce: FIXED.nonce, fence: uint(), seller: key, buyer: key, job: cid, module: cid,
  inputs: FIXED.inputs, outputs: many(cid, 8), meter: name, unit: FIXED.unit, price: uint(), fee: uint(),
  reserve: uint(), fuel: uint(), amount: uint(), exit: uint(2n ** 32n - 1n),
  escalations: many(row(uint(), uint(), uint(), uint()), 8), migrations: many(row(uint(), key, key, cid), 8),
  start_ms: uint(), end_ms: uint(), deadline_ms: uint(), grace_ms: uint(), arbiter: sized(0, 32),
  ref: sized(0, 32),
};
const STATEMENTS = {
  DISPUTE: { version: one, ref: key, about: key, reason: name, evidence: (v) => sized(0)(v) || cid(v) },
  REFUND: { version: one, ref: key, amount: uint() },
  LINE: { version: one, limit: uint() },
  KEYOP: {
    version: one, op: (v) => typeof v === "bigint" && v >= 1n && v <= 4n, net: sized(8), owner: key,
    subject: key, commitment: sized(0, 32),
  },
  HEAD: { version: one, root: key },
  FORKPROOF: { version: one, first: atMost(BODY_MAX), second: atMost(BODY_MAX) },
};
// [author, peer, peer_sig] by length; the kinds that are not here are signed by both
const PARTIES = {
  CLAIM: [32, 32, 0], DISPUTE: [32, 32, 0], RULING: [32, 32, 0], REFUND: [32, 32, 0], LINE: [32, 32, 0],
  KEYOP: [32, 32, null], HEAD: [32, 0, 0], FORKPROOF: [0, 0, 0],
};

function record(what, value, rules) {
  const names = Object.keys(rules);
  if (!Array.isArray(value) || value.length !== names.length) bad(`${what}: not an array of ${names.length}`);
  const fields = {};
  names.forEach((field, i) => { fields[field] = rules[field](value[i]) ? value[i] : bad(`${what}.${field}`); });
  return fields;
}

/** The entry in *bytes*: shape and ranges only, its terms or statement included. Throws BadEntry. */
export async function readEntry(bytes, isWhole = true) {
  const { body, sig } = record("entry", decode(bytes, ENTRY_MAX), ENTRY);
  const fields = record("body", decode(body, BODY_MAX), BODY);
  const kind = KINDS[Number(fields.kind)] || bad(`kind ${fields.kind} is not known`);
  const lengths = PARTIES[kind] ?? [32, 32, 64];
  ["author", "peer", "peer_sig"].forEach((field, i) => {
    if (lengths[i] !== null && fields[field].length !== lengths[i]) bad(`body.${field}`);
  });
  const entry = { ...fields, kind, sig, bytes: body, digest: await sha256(body) };
  entry.id = hex(entry.digest);
  if (isWhole) {
    entry.is = TERMED.has(kind) ? record("terms", decode(fields.terms, TERMS_MAX), DEAL)
      : record(kind.toLowerCase(), decode(fields.terms, BODY_MAX), STATEMENTS[kind]);
    entry.ref = entry.is.ref ?? new Uint8Array(0);
  }
  return entry;
}

// --- validity: the bytes alone ------------------------------------------------------------------

const least = (a, b) => (a < b ? a : b);
const bill = (deal, fuel, fee) => least((deal.price * fuel) / 10n ** 9n + fee, deal.reserve);
/** The bill of SETTLE terms, µcr. */
export const amountOf = (deal, fuel = deal.fuel, exit = deal.exit) => bill(deal, fuel, exit === 0n ? deal.fee : 0n);

/** That terms or statement are those of this entry, and the amount is right. Throws BadEntry. */
export async function checkDeal(entry) {
  if (TERMED.has(entry.kind)) checkTerms(entry, entry.is);
  else if (entry.kind === "KEYOP") checkKeyop(entry, entry.is);
  else if (entry.kind === "FORKPROOF") await checkProof(entry);
  else if (entry.kind === "HEAD") { if (entry.seq === 0n) bad("a HEAD of nothing"); }
  else {
    if (entry.kind === "REFUND" && entry.is.amount === 0n) bad("a REFUND of nothing");
    if (equal(entry.author, entry.peer)) bad("a deal with oneself");
  }
}

function checkTerms({ kind, author, peer }, deal) {
  const roles = { CLAIM: ["seller", "buyer"], RULING: ["arbiter", "buyer"] }[kind] ?? ["buyer", "seller"];
  if (!equal(author, deal[roles[0]])) bad(`the author is not the ${roles[0]} of the terms`);
  if (!equal(peer, deal[roles[1]])) bad(`the peer is not the ${roles[1]} of the terms`);
  if (equal(deal.seller, deal.buyer)) bad("a deal with oneself");
  if (kind === "RULING" && (equal(author, deal.seller) || equal(author, deal.buyer))) bad("an arbiter of its own deal");
  if ((kind === "ALLOC") !== (deal.ref.length === 0)) bad("ref is given in all but ALLOC");
  if (["ALLOC", "USE"].includes(kind) && (deal.outputs.length || deal.exit)) bad(`a ${kind} that tells how the run ended`);
  if (kind === "RULING") { if (deal.amount > deal.reserve) bad("a RULING above the reserve"); return; }
  const owed = kind === "SETTLE" || kind === "CLAIM" ? amountOf(deal) : kind === "USE" ? bill(deal, deal.fuel, 0n) : 0n;
  if (deal.amount !== owed) bad(`the amount is ${deal.amount}, the terms make it ${owed}`);
}

function checkKeyop(entry, { op, net, owner, subject, commitment }) {
  if (!equal(owner, entry.author) || !equal(subject, entry.peer) || !equal(net, entry.net)) bad("the KEYOP is another's");
  const isRecovery = op === 4n, isAgreed = op === 1n || op === 3n, isOwn = equal(subject, owner);
  if (isRecovery !== commitment.length > 0) bad("a commitment is given in RECOVERY only");
  if (isAgreed !== entry.peer_sig.length > 0) bad("the subject signs DELEGATE and ROTATE only");
  if ((isAgreed && isOwn) || (isRecovery && !isOwn)) bad("a KEYOP of the wrong subject");
}

const place = (entry) => `${hex(entry.net)}/${hex(entry.author)}/${entry.seq}`;
const arms = (entry) => Promise.all([readEntry(entry.is.first, false), readEntry(entry.is.second, false)]);

async function checkProof(entry) {
  if (entry.seq || entry.hlc || entry.posted || entry.pending || !equal(entry.prev, GENESIS)) bad("a FORKPROOF has no place of its own");
  const [first, second] = await arms(entry);
  if (!equal(first.net, entry.net)) bad("a fork on another network");
  if (first.kind === "FORKPROOF" || second.kind === "FORKPROOF") bad("a FORKPROOF of a FORKPROOF");
  if (place(first) !== place(second)) bad("two entries of different places");
  if (first.id >= second.id) bad("not the smaller id first, or the same entry twice");
}

/** That everybody signed who has to. Throws BadEntry. */
export async function checkSignatures(entry) {
  const isSigned = ({ author, digest, sig }) => verify(author, concat(AUTHOR, digest), sig);
  if (entry.kind === "FORKPROOF") {
    if (!equal(entry.sig, NO_SIGNATURE)) bad("a FORKPROOF has no author to sign it");
    for (const arm of await arms(entry)) if (!(await isSigned(arm))) bad("the fork is not signed by its author");
    return;
  }
  if (entry.peer_sig.length) {
    const prefix = { USE, KEYOP }[entry.kind] ?? TERMS;
    const message = concat(prefix, await sha256(entry.terms));
    if (!(await verify(entry.peer, message, entry.peer_sig))) bad("the peer's signature is not its own");
  }
  if (!(await isSigned(entry))) bad("the author's signature is not its own");
}

// --- chain: what follows from what ---------------------------------------------------------------

const resolves = (deal, fixed) => deal.fuel <= fixed.fuel && Object.keys(FIXED).every((field) => same(deal[field], fixed[field]));

function checkResolution(entry, alloc) {
  if (!alloc || alloc.kind !== "ALLOC") broken("the ALLOC that it refers to is not there");
  const isOwn = entry.kind !== "CLAIM" && entry.kind !== "RULING";
  if (!equal(alloc.author, entry.is.buyer) || !equal(alloc.net, entry.net) || (isOwn && alloc.seq >= entry.seq)) broken("the ALLOC is not an earlier entry of the same chain");
  if (!resolves(entry.is, alloc.is)) broken("the terms are not those of the ALLOC");
}

const heirOf = (entry) => (entry.kind === "KEYOP" && entry.is.op === 3n ? entry.is.subject : new Uint8Array(0));

/** The head that *entry* must follow: that of the entry *before*; for the first nothing, or the ROTATE to its author. */
function headBefore(entry, before) {
  const { author, net } = entry;
  if (entry.seq !== 0n) return { ...before, seq: before.seq + 1n, prev: before.digest };
  if (equal(entry.prev, GENESIS)) return { author, net, seq: 0n, prev: GENESIS, hlc: 0n, posted: 0n, pending: 0n };
  if (!equal(heirOf(before), author) || !equal(before.net, net)) broken("it begins at an entry that is no ROTATE to its author");
  return { author, net, seq: 0n, prev: before.digest, hlc: before.hlc, posted: 0n, pending: 0n };
}

function checkOrder(head, entry) {
  if (!equal(head.author, entry.author) || !equal(head.net, entry.net)) broken("an entry of another chain");
  if (entry.seq !== head.seq) broken(`seq ${entry.seq} where ${head.seq} follows`);
  if (!equal(entry.prev, head.prev)) broken("prev is not the id of the entry before");
  if (entry.hlc <= head.hlc) broken("the clock does not rise");
}

function checkTotals(head, entry, alloc) {
  let { posted, pending } = head;
  if (entry.kind === "ALLOC") pending += entry.is.reserve;
  if (["SETTLE", "VOID", "USE"].includes(entry.kind)) checkResolution(entry, alloc);
  if (entry.kind === "SETTLE" || entry.kind === "VOID") { posted += entry.is.amount; pending -= alloc.is.reserve; }
  if (entry.kind === "REFUND") posted += entry.is.amount;
  if (entry.posted !== posted || entry.pending !== pending) broken(`totals where ${posted} posted, ${pending} pending follow`);
}

// --- proofs: RFC 6962 trees ----------------------------------------------------------------------

const PATH_MAX = 64;
const leafHash = (leaf) => sha256(concat(new Uint8Array([0]), leaf));
const nodeHash = (left, right) => sha256(concat(new Uint8Array([1]), left, right));
const areHashes = (path, most) => path.length <= most && path.every((each) => each.length === 32);

/** The roots over the first *size* leaves, for every size of *sizes*. */
export async function treeRoots(leaves, sizes) {
  const peaks = [], roots = new Map(); // of the full subtrees so far, the largest first: [height, node]
  const note = async (size) => {
    if (!sizes.has(size)) return;
    let node = peaks.at(-1)?.[1] ?? (await sha256(new Uint8Array(0)));
    for (const [, left] of peaks.slice(0, -1).reverse()) node = await nodeHash(left, node);
    roots.set(size, node);
  };
  await note(0);
  for (let size = 1; size <= leaves.length; size++) {
    let height = 0, node = await leafHash(leaves[size - 1]);
    while (peaks.at(-1)?.[0] === height) { node = await nodeHash(peaks.pop()[1], node); height += 1; }
    peaks.push([height, node]);
    await note(size);
  }
  return roots;
}

/** RFC 9162 section 2.1.3.2. Index and size are BigInt. */
export async function isIncluded(leaf, index, size, path, root) {
  if (index < 0n || index >= size || !areHashes(path, PATH_MAX)) return false;
  let node = await leafHash(leaf), last = size - 1n;
  for (const sibling of path) {
    if (last === 0n) return false;
    if (index & 1n || index === last) {
      node = await nodeHash(sibling, node);
      while (index && !(index & 1n)) { index >>= 1n; last >>= 1n; }
    } else node = await nodeHash(node, sibling);
    index >>= 1n; last >>= 1n;
  }
  return last === 0n && equal(node, root);
}

/** RFC 9162 section 2.1.4.2. Sizes are BigInt. */
export async function isConsistent(old, size, path, oldRoot, root) {
  if (old <= 0n || old > size || !areHashes(path, PATH_MAX + 1)) return false;
  if (old === size) return path.length === 0 && equal(oldRoot, root);
  if ((old & (old - 1n)) === 0n) path = [oldRoot, ...path];
  if (!path.length) return false;
  let index = old - 1n, last = size - 1n;
  while (index & 1n) { index >>= 1n; last >>= 1n; }
  let first = path[0], second = path[0];
  for (const sibling of path.slice(1)) {
    if (last === 0n) return false;
    if (index & 1n || index === last) {
      first = await nodeHash(sibling, first);
      second = await nodeHash(sibling, second);
      while (index && !(index & 1n)) { index >>= 1n; last >>= 1n; }
    } else second = await nodeHash(second, sibling);
    index >>= 1n; last >>= 1n;
  }
  return last === 0n && equal(first, oldRoot) && equal(second, root);
}

// --- the file: JSON lines ------------------------------------------------------------------------

const LINE_MAX = 64 * 1024, NESTED_MAX = 256, ARMS_MAX = 16, MEMBERS_MAX = 64;
const told = (number) => (number > BigInt(Number.MAX_SAFE_INTEGER) ? String(number) : Number(number));
const shown = (value) => (typeof value === "bigint" ? told(value) : value instanceof Uint8Array ? hex(value) : value);

function readable(entry) {
  const { id, kind, net, author, seq, peer, ref, is } = entry;
  const more = { ...is };
  if (TERMED.has(kind)) {
    more.task = is.nonce;
    for (const field of ["nonce", "job", "module", "inputs", "outputs", "unit", "escalations", "migrations", "start_ms", "end_ms", "deadline_ms", "grace_ms", "arbiter"]) delete more[field];
  }
  delete more.version;
  const fields = { net, author, seq, peer, ref, ...more };
  for (const field of Object.keys(fields)) fields[field] = shown(fields[field]);
  return { id, kind, ...fields };
}

function unbase64url(raw) {
  if (!/^[A-Za-z0-9_-]*$/.test(raw) || raw.length % 4 === 1) bad('"raw" is not base64url');
  const binary = atob(raw.replaceAll("-", "+").replaceAll("_", "/"));
  if (btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "") !== raw) bad('"raw" is not the one base64url of its bytes');
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}

const asBytes = (length) => (v) => (typeof v === "string" && v.length === 2 * length && /^[0-9a-f]*$/.test(v) ? unhex(v) : bad(`not ${length} bytes in hexadecimal`));
const asList = (length, most) => (v) => (Array.isArray(v) && v.length <= most ? v.map(asBytes(length)) : bad(`not a list of at most ${most}`));
const asText = (v) => (typeof v === "string" && [...v].length <= 256 ? v : bad("not a text of at most 256"));
const asNumber = (top) => (v) => {
  const number = Number.isSafeInteger(v) ? BigInt(v)
    : typeof v === "string" && /^[1-9][0-9]{15,18}$/.test(v) && BigInt(v) > BigInt(Number.MAX_SAFE_INTEGER) ? BigInt(v) : -1n;
  return number >= 0n && number <= top ? number : bad(`not a number of at most ${top}`);
};
const EVIDENCE = {
  inclusion: { entry_id: asBytes(32), head_id: asBytes(32), path: asList(32, PATH_MAX) },
  consistency: { old_id: asBytes(32), new_id: asBytes(32), path: asList(32, PATH_MAX + 1) },
  certificate: { entry_id: asBytes(32), members: asList(32, MEMBERS_MAX), votes: asList(96, MEMBERS_MAX) },
  rerun: { entry_id: asBytes(32), job: asBytes(36), meter: asText, fuel: asNumber(UINT_MAX), exit: asNumber(2n ** 32n - 1n), outputs: asList(36, 8) },
};

function* linesOf(bytes) {
  for (let at = 0; at < bytes.length;) {
    const end = bytes.indexOf(10, at);
    const next = Math.min(end < 0 ? bytes.length : end + 1, at + LINE_MAX + 1);
    yield bytes.subarray(at, next);
    at = next;
  }
}

async function readLine(line, file) {
  if (line.length > LINE_MAX) bad(`longer than ${LINE_MAX} bytes`);
  if (line.filter((byte) => byte === 0x5b || byte === 0x7b).length > NESTED_MAX) bad(`more than ${NESTED_MAX} brackets`);
  let fields;
  try { fields = JSON.parse(text.decode(line)); } catch { bad("not JSON"); }
  if (fields === null || typeof fields !== "object" || Array.isArray(fields)) bad('no "raw"');
  const names = Object.keys(fields);
  if (names.length === 1 && Object.hasOwn(EVIDENCE, names[0])) {
    const rules = EVIDENCE[names[0]], given = fields[names[0]];
    const isObject = given !== null && typeof given === "object" && !Array.isArray(given);
    if (!isObject || !same(Object.keys(given).sort(), Object.keys(rules).sort())) bad(`not the fields ${Object.keys(rules)}`);
    const item = { type: names[0] };
    for (const field of Object.keys(rules)) item[field] = rules[field](given[field]);
    file.evidence.push(item);
    return;
  }
  if (!Object.hasOwn(fields, "raw") || typeof fields.raw !== "string") bad('no "raw"');
  const entry = await readEntry(unbase64url(fields.raw));
  const right = readable(entry);
  for (const field of names) {
    if (field !== "raw" && Object.hasOwn(right, field) && fields[field] !== right[field]) {
      file.findings.push({ id: entry.id, check: "encoding", good: false, detail: `"${field}" is not what the bytes say` });
    }
  }
  file.entries.push(entry);
}

async function readFile(bytes) {
  const file = { entries: [], evidence: [], findings: [] };
  let number = 0;
  for (const line of linesOf(bytes)) {
    number += 1;
    if (line.every((byte) => byte === 32 || (byte >= 9 && byte <= 13))) continue;
    try { await readLine(line, file); } catch (error) {
      if (!(error instanceof BadEntry)) throw error;
      file.findings.push({ id: "", check: "encoding", good: false, detail: `line ${number}: ${error.message}` });
    }
  }
  return file;
}

// --- the audit -----------------------------------------------------------------------------------

const attempt = async (check, say) => {
  try { await check(); return [true, say]; } catch (error) {
    if (error instanceof BadEntry || error instanceof Broken) return [false, error.message];
    throw error;
  }
};
const order = (a, b) => { for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i] < b[i] ? -1 : 1; return 0; };
const dealOf = (entry) => [entry.ref.length ? hex(entry.ref) : entry.id, hex(entry.is.buyer), hex(entry.is.seller)].join("/");
const PRECEDENCE = { RULING: 0, SETTLE: 1, VOID: 2, CLAIM: 3 };
const VOICES = { SETTLE: 0, VOID: 0, RULING: 1, CLAIM: 2 };
const rank = (entry) => [PRECEDENCE[entry.kind], -entry.is.amount, entry.id];

/** Everything that the file in *bytes* shows or fails to show: [{id, check, good, detail}, ...]. */
export async function audit(bytes) {
  const { entries, evidence, findings } = await readFile(bytes);
  const find = (id, check, [good, detail]) => { findings.push({ id, check, good, detail }); return good; };
  const unique = new Map(entries.map((entry) => [`${entry.id}${hex(entry.sig)}`, entry]));
  const keyOf = (entry) => [hex(entry.net), hex(entry.author), entry.seq, entry.id, hex(entry.sig)];
  const valid = new Map();
  for (const entry of [...unique.values()].sort((a, b) => order(keyOf(a), keyOf(b)))) {
    const isSigned = find(entry.id, "signatures", await attempt(() => checkSignatures(entry), "signed"));
    const isRight = find(entry.id, "amount", await attempt(() => checkDeal(entry), entry.kind));
    if (isSigned && isRight) valid.set(entry.id, entry);
  }
  const proven = new Set();
  for (const item of evidence) await show(item, valid, proven, find);
  for (const entry of valid.values()) await link(entry, valid, proven, find);
  await checkHeads(valid, find);
  checkUses(valid, find);
  await checkResolutions(valid, find);
  checkHeirs(valid, find);
  checkForks(valid, find);
  checkBalances(valid, find);
  return findings;
}

async function show(item, valid, proven, find) {
  if (item.type === "rerun") { find(hex(item.entry_id), "bill", showBill(item, valid.get(hex(item.entry_id)))); return; }
  if (item.type === "certificate") { find(hex(item.entry_id), "certificate", await attempt(() => checkCertificate(item, valid.get(hex(item.entry_id))), "witnessed")); return; }
  const isInclusion = item.type === "inclusion";
  const [lower, upper] = isInclusion ? [hex(item.entry_id), hex(item.head_id)] : [hex(item.old_id), hex(item.new_id)];
  const below = valid.get(lower), above = valid.get(upper);
  let good = Boolean(below && above && above.kind === "HEAD" && (isInclusion || below.kind === "HEAD"));
  good &&= equal(below.net, above.net) && equal(below.author, above.author);
  good &&= await (isInclusion ? isIncluded(below.digest, below.seq, above.seq, item.path, above.is.root)
    : isConsistent(below.seq, above.seq, item.path, below.is.root, above.is.root));
  if (good) { proven.add(lower); proven.add(upper); }
  find(isInclusion ? lower : upper, item.type, [good, good ? "proven" : "the proof does not hold"]);
}

const rise = (keys) => keys.every((each, i) => i === 0 || hex(keys[i - 1]) < hex(each));

/** That q = ⌈(n+f+1)/2⌉ of the n members, of whom f = ⌊(n-1)/3⌋ may lie, voted for *entry*. Throws BadEntry. */
async function checkCertificate({ members, votes }, entry) {
  if (!entry || entry.kind === "FORKPROOF") bad("the entry that is certified is not here, or on no chain");
  if (!members.length || !rise(members) || !members.every(isSoundKey)) bad("the members are no quorum");
  const witnesses = votes.map((vote) => vote.subarray(0, 32));
  const known = new Set(members.map(hex));
  if (!rise(witnesses) || !witnesses.every((each) => known.has(hex(each)))) bad("not one vote each, of members, rising");
  const faulty = Math.floor((members.length - 1) / 3), needed = Math.ceil((members.length + faulty + 1) / 2);
  if (votes.length < needed) bad(`${votes.length} votes where ${needed} are needed`);
  const message = concat(WITNESS, encodeRow([1n, entry.net, entry.author, entry.seq, entry.digest]));
  for (const vote of votes) if (!(await verify(vote.subarray(0, 32), message, vote.subarray(32)))) bad("a witness's signature is not its own");
}

function showBill(again, entry) {
  if (!entry || !["SETTLE", "CLAIM"].includes(entry.kind)) return [false, "the bill that was run again is not here"];
  const deal = entry.is;
  if (!equal(again.job, deal.job) || again.meter !== deal.meter) return [false, "another job, or another meter, was run again"];
  const before = deal.migrations.length ? deal.migrations.at(-1)[0] : 0n;
  const whole = { ...deal, fuel: before + deal.fuel };
  const ours = again.fuel > before ? again.fuel - before : 0n;
  const differs = ["fuel", "exit", "outputs"].filter((field) => !same(again[field], whole[field]));
  return differs.length ? [false, `differs in ${differs.join(", ")}; ${amountOf(deal, ours, again.exit)} µcr, not ${deal.amount}`] : [true, "run again: equal"];
}

async function link(entry, valid, proven, find) {
  if (entry.kind === "FORKPROOF") return;
  const before = valid.get(hex(entry.prev));
  if (!before && !(entry.seq === 0n && equal(entry.prev, GENESIS))) { find(entry.id, "chain", proven.has(entry.id) ? [true, "proven by a HEAD"] : [false, `seq ${entry.seq}: the entry before is missing`]); return; }
  let head;
  const follows = () => { head = headBefore(entry, before); checkOrder(head, entry); };
  if (!find(entry.id, "chain", await attempt(follows, `seq ${entry.seq} follows`))) return;
  find(entry.id, "totals", await attempt(() => checkTotals(head, entry, valid.get(hex(entry.ref))), `${entry.posted} µcr posted, ${entry.pending} pending`));
}

function pathTo(tip, valid) {
  const path = [tip];
  while (path.at(-1).seq > 0n) {
    const before = valid.get(hex(path.at(-1).prev));
    if (!before || place(before) !== place({ ...path.at(-1), seq: path.at(-1).seq - 1n })) return [];
    path.push(before);
  }
  return BigInt(path.length) === tip.seq + 1n ? path.reverse() : [];
}

async function checkHeads(valid, find) {
  const chains = new Map();
  for (const entry of valid.values()) {
    if (entry.kind !== "HEAD") continue;
    const chain = `${hex(entry.net)}/${hex(entry.author)}`;
    if (!chains.has(chain)) chains.set(chain, []);
    chains.get(chain).push(entry);
  }
  for (const several of chains.values()) {
    let path = [], roots = new Map(), walks = 0;
    for (const head of several.sort((a, b) => order([-a.seq, a.id], [-b.seq, b.id]))) {
      const size = Number(head.seq);
      if (path[size]?.id !== head.id && walks < ARMS_MAX) {
        walks += 1;
        path = pathTo(head, valid);
        const sizes = new Set(path.filter((entry) => entry.kind === "HEAD").map((entry) => Number(entry.seq)));
        roots = await treeRoots(path.map((entry) => entry.digest), sizes);
      }
      if (path[size]?.id !== head.id) continue;
      const good = equal(roots.get(size), head.is.root);
      find(head.id, "head", [good, `the tree of ${size} entries has ${good ? "this" : "another"} root`]);
    }
  }
}

function checkUses(valid, find) {
  const most = new Map();
  for (const entry of valid.values()) {
    if (entry.kind !== "USE") continue;
    const deal = dealOf(entry), before = most.get(deal) ?? 0n, { fuel } = entry.is;
    most.set(deal, fuel > before ? fuel : before);
    find(entry.id, "use", [fuel >= before, `${fuel} fuel after ${before}`]);
  }
}

async function checkResolutions(valid, find) {
  const rivals = new Map();
  for (const entry of valid.values()) {
    if (!(entry.kind in PRECEDENCE)) continue;
    const deal = dealOf(entry);
    if (!rivals.has(deal)) rivals.set(deal, []);
    rivals.get(deal).push(entry);
  }
  for (const several of rivals.values()) {
    const ranked = [...several].sort((a, b) => order(rank(a), rank(b)));
    for (const entry of several) {
      const keeps = await attempt(() => checkResolution(entry, valid.get(hex(entry.ref))), "resolves its ALLOC");
      const first = ranked.find((each) => VOICES[each.kind] === VOICES[entry.kind]);
      find(entry.id, "resolution", keeps[0] && first !== entry ? [false, `resolved by r-${first.id}`] : keeps);
    }
  }
}

function checkHeirs(valid, find) {
  const heirs = new Map(), rotates = [...valid.values()].filter((entry) => heirOf(entry).length);
  const keyOf = ({ net, author }) => `${hex(net)}/${hex(author)}`;
  for (const entry of rotates) heirs.set(keyOf(entry), (heirs.get(keyOf(entry)) ?? new Set()).add(hex(heirOf(entry))));
  for (const entry of rotates) find(entry.id, "heir", [heirs.get(keyOf(entry)).size === 1, `handed to ${[...heirs.get(keyOf(entry))]}`]);
}

function checkForks(valid, find) {
  const places = new Map();
  for (const entry of valid.values()) {
    if (entry.kind === "FORKPROOF") find(entry.id, "fork", [false, "its author signed one place twice"]);
    else if (places.has(place(entry))) find(places.get(place(entry)), "fork", [false, `${hex(entry.author)} signed seq ${entry.seq} twice: also r-${entry.id}`]);
    else places.set(place(entry), entry.id);
  }
}

function checkBalances(valid, find) {
  const sums = new Map(), cases = new Map();
  for (const entry of valid.values()) {
    const net = hex(entry.net);
    if (!sums.has(net)) sums.set(net, { owed: 0n, reserved: 0n });
    if (entry.kind === "REFUND") sums.get(net).owed += entry.is.amount;
    if (!TERMED.has(entry.kind) || entry.kind === "USE") continue;
    const deal = `${net}/${dealOf(entry)}`;
    if (!cases.has(deal)) cases.set(deal, { net, alloc: null, rivals: [] });
    if (entry.kind === "ALLOC") cases.get(deal).alloc = entry;
    else cases.get(deal).rivals.push(entry);
  }
  for (const { net, alloc, rivals } of cases.values()) {
    const keeps = (entry) => alloc && Object.keys(FIXED).every((field) => same(entry.is[field], alloc.is[field]));
    const heard = rivals.filter((entry) => ["SETTLE", "VOID"].includes(entry.kind) || keeps(entry));
    const first = heard.sort((a, b) => order(rank(a), rank(b)))[0];
    if (first && first.kind !== "CLAIM") sums.get(net).owed += first.is.amount;
    else if (alloc) sums.get(net).reserved += alloc.is.reserve;
  }
  for (const [net, { owed, reserved }] of [...sums].sort((a, b) => order([a[0]], [b[0]]))) {
    find("", "balance", [true, `net ${net}: ${owed} µcr owed, ${owed} earned, ${reserved} reserved`]);
  }
}
