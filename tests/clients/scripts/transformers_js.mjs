// Run transformers.js under Node, with absolute paths.
import { readFileSync, writeFileSync } from "node:fs";
import * as library from "@huggingface/transformers";
import { runCheck } from "./transformers_js_answers.mjs";

const [job, result] = process.argv.slice(2);
const found = { versions: { "transformers.js": library.env.version, node: process.versions.node }, checks: [] };
for (const check of JSON.parse(readFileSync(job)).checks) {
  console.error(`${check.export}, ${check.format}`);
  found.checks.push(await runCheck(library, check, check.folder));
  writeFileSync(result, JSON.stringify(found));
}
