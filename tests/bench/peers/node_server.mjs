// The server that one would write instead: Node's http, sharp, ONNX Runtime.
//   node node_server.mjs MODEL.onnx LABELS.tsv     port 0; the first line of output tells which
// POST an image; ?size=native sends it through at its own size, otherwise shorter side 256 and centre crop 224.

import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import * as ort from 'onnxruntime-node';
import sharp from 'sharp';

const MEAN = [0.485, 0.456, 0.406];
const STD = [0.229, 0.224, 0.225];
const [model, labelFile] = process.argv.slice(2);
const labels = readFileSync(labelFile, 'utf8').trimEnd().split('\n').map((line) => line.split('\t'));
const session = await ort.InferenceSession.create(model);

async function tensorOf(image, native) {
  let picture = sharp(image).rotate();
  if (!native) picture = picture.resize(256, 256, { fit: 'outside' });
  let { data, info } = await picture.toColourspace('srgb').removeAlpha().raw().toBuffer({ resolveWithObject: true });
  let top = 0, left = 0, height = info.height, width = info.width;
  if (!native) {
    top = (height - 224) >> 1;
    left = (width - 224) >> 1;
    height = width = 224;
  }
  const values = new Float32Array(3 * height * width);
  for (let c = 0; c < 3; c++) {
    const scale = 1 / (255 * STD[c]), shift = -MEAN[c] / STD[c];
    for (let y = 0; y < height; y++) {
      const from = ((top + y) * info.width + left) * 3 + c;
      const to = (c * height + y) * width;
      for (let x = 0; x < width; x++) values[to + x] = data[from + 3 * x] * scale + shift;
    }
  }
  return new ort.Tensor('float32', values, [1, 3, height, width]);
}

function topFive(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const weights = Array.from(logits, (value) => Math.exp(value - largest));
  const sum = weights.reduce((a, b) => a + b);
  return weights
    .map((weight, index) => ({ class: index, label: labels[index]?.at(-1), probability: weight / sum }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, 5);
}

const server = createServer(async (request, response) => {
  const reply = (status, body) => {
    const text = JSON.stringify(body);
    response.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(text) });
    response.end(text);
  };
  try {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const native = new URL(request.url, 'http://localhost').searchParams.get('size') === 'native';
    const input = await tensorOf(Buffer.concat(chunks), native);
    const { logits } = await session.run({ input });
    reply(200, { predictions: topFive(logits.data) });
  } catch (error) {
    reply(422, { error: String(error) });
  }
});
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ ready: true, port: server.address().port })));
