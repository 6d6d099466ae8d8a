// Run onnxruntime-node on the files themselves, with PyTorch's token ids.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const ort = createRequire(import.meta.url)("onnxruntime-node");
const FILES = { "onnx": "model.onnx", "onnx-int8": "model_quantized.onnx", "onnx-int4": "model_q4.onnx" };
const [job, result] = process.argv.slice(2);
const found = { versions: { "onnxruntime-node": ort.env.versions.node, node: process.versions.node }, checks: [] };
for (const check of JSON.parse(readFileSync(job)).checks) {
  console.error(`${check.export}, ${check.format}`);
  const row = { export: check.export, format: check.format, answers: {}, errors: {}, notes: [] };
  for (const [name, given] of Object.entries(check.inputs)) {
    try {
      const session = await ort.InferenceSession.create(`${check.folder}/onnx/${FILES[check.format]}`);
      const column = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
      const inputs = { input_ids: column(given.ids), attention_mask: column(given.ids.map(() => 1)) };
      if (given.type_ids.length) inputs.token_type_ids = column(given.type_ids);
      const outputs = await session.run(inputs);
      row.answers[name] = { logits: session.outputNames.flatMap((output) => Array.from(outputs[output].data, Number)) };
    } catch (error) {
      row.errors[name] = `${error.name}: ${String(error.message).trim().split("\n").at(-1)}`.slice(0, 300);
    }
  }
  found.checks.push(row);
  writeFileSync(result, JSON.stringify(found));
}
