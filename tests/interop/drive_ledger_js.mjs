// Reads {verifier, canonical, ed25519, roots, included, consistent, rows, files} as JSON, answers what verify.js says of each.
import { readFileSync } from "node:fs";

const job = JSON.parse(readFileSync(0, "utf8"));
const { audit, decode, encodeRow, hex, isConsistent, isIncluded, treeRoots, unhex, verify } = await import(job.verifier);

const decodes = (data) => {
  try {
    decode(unhex(data));
    return true;
  } catch {
    return false;
  }
};
const ed25519 = ([key, message, signature]) => verify(unhex(key), unhex(message), unhex(signature));
const root = async (leaves) => hex((await treeRoots(leaves.map(unhex), new Set([leaves.length]))).get(leaves.length));

const included = ([leaf, index, size, path, root]) =>
  isIncluded(unhex(leaf), BigInt(index), BigInt(size), path.map(unhex), unhex(root));
const consistent = ([old, size, path, oldRoot, newRoot]) =>
  isConsistent(BigInt(old), BigInt(size), path.map(unhex), unhex(oldRoot), unhex(newRoot));

const files = [];
for (const file of job.files) files.push(await audit(Buffer.from(file, "base64")));
const answer = {
  canonical: job.canonical.map(decodes),
  ed25519: await Promise.all(job.ed25519.map(ed25519)),
  roots: await Promise.all(job.roots.map(root)),
  included: await Promise.all(job.included.map(included)),
  consistent: await Promise.all(job.consistent.map(consistent)),
  rows: job.rows.map((items) => hex(encodeRow(items.map(([bytes, number]) => bytes === null ? BigInt(number) : unhex(bytes))))),
  files,
};
process.stdout.write(JSON.stringify(answer));
