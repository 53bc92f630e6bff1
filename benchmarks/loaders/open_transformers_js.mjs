// transformers.js opens one precision of a folder: FOLDER FILE TEXTS OUT; the precision follows from FILE's name.
import { readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { AutoModelForSequenceClassification, AutoTokenizer, env } from '@huggingface/transformers';

const [folder, file, texts, out] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const name = basename(folder);
const dtype = { 'model.onnx': 'fp32', 'model_quantized.onnx': 'q8', 'model_fp16.onnx': 'fp16' }[basename(file)];
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForSequenceClassification.from_pretrained(name, { dtype });
const logits = [];
for (const text of JSON.parse(readFileSync(texts, 'utf-8'))) {
  const output = await model(tokenizer(text, { truncation: true }));
  logits.push(Array.from(output.logits.to('float32').data));
}
const names = model.config.id2label;
const labels = Object.keys(names).map((i) => names[i]);
writeFileSync(out, JSON.stringify({ logits, labels, version: `transformers.js ${env.version}, Node.js ${process.versions.node}` }));
