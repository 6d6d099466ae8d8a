// Answer one check's inputs with transformers.js, under Node and in a page.
// It uses a pipeline with its defaults if there is one for the inputs.

export const DTYPES = { "onnx": "fp32", "onnx-int8": "q8", "onnx-int4": "q4" };

export async function answersTo(library, check, name) {
  const { pipeline, AutoTokenizer, AutoModelForSequenceClassification } = library;
  const options = { dtype: DTYPES[check.format], device: check.device };
  if (check.task === "text-classification" && check.pairs || check.task === "regression") {
    // the pipeline takes no second text
    const tokenizer = await AutoTokenizer.from_pretrained(name);
    const model = await AutoModelForSequenceClassification.from_pretrained(name, options);
    return async (given) => {
      const inputs = await tokenizer(given.text, { text_pair: given.pair, padding: true, truncation: true });
      return { logits: flat((await model(inputs)).logits) };
    };
  }
  const pipe = await pipeline(check.task, name, options);
  if (check.task === "question-answering") {
    return async (given) => {
      await pipe(given.text, given.pair);
      const inputs = await pipe.tokenizer(given.text, { text_pair: given.pair, padding: true, truncation: true });
      const found = await pipe.model(inputs);
      return { logits: [...flat(found.start_logits), ...flat(found.end_logits)] };
    };
  }
  if (check.task === "feature-extraction") {
    return async (given) => ({ logits: flat(await pipe(given.text)), unit_mean: flat(await pipe(given.text, { pooling: "mean", normalize: true })) });
  }
  return async (given) => {
    const found = await pipe(given.text);
    return { scores: found.map((row) => [check.task === "fill-mask" ? String(row.token) : row.label, row.score]) };
  };
}

export async function runCheck(library, check, name) {
  const row = { export: check.export, format: check.format, answers: {}, errors: {}, notes: [] };
  const said = (error) => `${error.name ?? "Error"}: ${String(error.message ?? error).trim().split("\n").at(-1)}`.slice(0, 300);
  let answer;
  try {
    answer = await answersTo(library, check, name);
  } catch (error) {
    for (const input of Object.keys(check.inputs)) row.errors[input] = said(error);
    return row;
  }
  for (const [input, given] of Object.entries(check.inputs)) {
    try {
      row.answers[input] = await answer(given);
    } catch (error) {
      row.errors[input] = said(error);
    }
  }
  return row;
}

function flat(tensor) {
  return Array.from(tensor.data, Number);
}
