// Greedy tokens from an exported folder in Transformers.js, on given inputs.
//
//     node generate_from_tensors.mjs FOLDER TENSORS.safetensors STEPS [DTYPE]
//
// TENSORS is what `lfm2vl preprocess --tensors` writes, so that a difference cannot come from image
// processing. Prints the new token ids as JSON, without the end token.

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { AutoModelForImageTextToText, Tensor } from '@huggingface/transformers';

const TYPES = { F32: ['float32', Float32Array], I64: ['int64', BigInt64Array] };

function readTensors(file) {
    const bytes = readFileSync(file);
    const start = 8 + Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.toString('utf8', 8, start));
    delete header.__metadata__;
    const tensors = {};
    for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
        const [type, Values] = TYPES[dtype];
        const content = Uint8Array.from(bytes.subarray(start + from, start + to));
        tensors[name] = new Tensor(type, new Values(content.buffer), shape);
    }
    return tensors;
}

const [folder, file, steps, dtype = 'fp32'] = process.argv.slice(2);
const model = await AutoModelForImageTextToText.from_pretrained(path.resolve(folder), { dtype });
const inputs = readTensors(file);
const ids = inputs.input_ids;
const ones = new BigInt64Array(ids.size).fill(1n);
const output = await model.generate({
    ...inputs,
    attention_mask: new Tensor('int64', ones, ids.dims),
    do_sample: false,
    repetition_penalty: 1,
    max_new_tokens: Number(steps),
});
const tokens = output.tolist()[0].slice(ids.dims[1]).map(Number);
const ends = [model.generation_config.eos_token_id].flat();
if (ends.includes(tokens.at(-1))) tokens.pop();
console.log(JSON.stringify(tokens));
