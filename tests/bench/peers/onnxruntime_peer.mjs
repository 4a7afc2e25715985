// ONNX Runtime as a peer of the engine benchmark.
//   node onnxruntime_peer.mjs MODEL.onnx THREADS
// Lines in, one JSON line out for each: see bench_engine.c for `shape` and `run`.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import * as ort from 'onnxruntime-node';

const [model, threads] = process.argv.slice(2);
const { version } = createRequire(import.meta.url)('onnxruntime-node/package.json');

// The input that every peer makes for itself, NCHW.
function testInput(n, height, width) {
  const values = new Float32Array(n * 3 * height * width);
  for (let i = 0; i < values.length; i++)
    values[i] = (Math.imul(i, 2654435761) >>> 8) * (4 / 16777216) - 2;
  return new ort.Tensor('float32', values, [n, 3, height, width]);
}

const session = await ort.InferenceSession.create(model, {
  executionProviders: ['cpu'],
  intraOpNumThreads: Number(threads),
  interOpNumThreads: 1,
  graphOptimizationLevel: 'all',
});
const say = (value) => console.log(JSON.stringify(value));
say({ ready: true, version, precision: 'fp32' });

let given;
for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...numbers] = line.trim().split(/\s+/);
  if (command === 'shape') {
    given = testInput(...numbers.map(Number));
    const { logits } = await session.run({ input: given });
    say({ logits: Array.from(logits.data.subarray(0, logits.dims[1])) });
  } else if (command === 'run') {
    const ms = [];
    for (let i = 0; i < Number(numbers[0]); i++) {
      const start = process.hrtime.bigint();
      await session.run({ input: given });
      ms.push(Number(process.hrtime.bigint() - start) / 1e6);
    }
    say({ ms });
  }
}
