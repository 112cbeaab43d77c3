// Checks graphs of image processors in onnxruntime-web's WebAssembly, as image_processor.py does in Python.
//
//     node image_processor.mjs FOLDER
//
// Of the cases, those with pixels are run whole, and for the sizes what image_processor.py has cut out of the
// graphs (`layouts/` in FOLDER).

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import * as ort from 'onnxruntime-web';

const folder = process.argv[2];
const cases = JSON.parse(readFileSync(path.join(folder, 'cases.json')));
ort.env.wasm.numThreads = 1;
ort.env.logLevel = 'error';

const sessions = new Map();
async function session(file) {
    if (!sessions.has(file)) sessions.set(file, await ort.InferenceSession.create(readFileSync(path.join(folder, file))));
    return sessions.get(file);
}

/** The high half of a product of 32-bit numbers. */
function high(a, b) {
    const [a1, a0, b1, b0] = [a >>> 16, a & 0xffff, b >>> 16, b & 0xffff];
    const middle = a1 * b0 + ((a0 * b0) >>> 16);
    return (a1 * b1 + Math.floor(middle / 65536) + ((a0 * b1 + (middle & 0xffff)) / 65536 >>> 0)) >>> 0;
}

/** The bytes of noise.py: the top bytes of SplitMix64's numbers, in halves of 32 bits. */
function noise(count, seed) {
    const bytes = new Uint8Array(count);
    let [stateHigh, stateLow] = [0, seed];
    for (let i = 0; i < count; i++) {
        const sum = stateLow + 0x7f4a7c15;
        stateHigh = (stateHigh + 0x9e3779b9 + (sum > 0xffffffff ? 1 : 0)) >>> 0;
        stateLow = sum >>> 0;
        let [h, l] = [stateHigh, stateLow];
        for (const [shift, factorHigh, factorLow] of [[30, 0xbf58476d, 0x1ce4e5b9], [27, 0x94d049bb, 0x133111eb]]) {
            l = (l ^ ((l >>> shift) | (h << (32 - shift)))) >>> 0;
            h = (h ^ (h >>> shift)) >>> 0;
            h = (high(l, factorLow) + Math.imul(h, factorLow) + Math.imul(l, factorHigh)) >>> 0;
            l = Math.imul(l, factorLow) >>> 0;
        }
        bytes[i] = (h ^ (h >>> 31)) >>> 24;
    }
    return bytes;
}

const name = (id) => cases.tokens[String(id)];
const marks = (ids) => Array.from(ids, name).filter((token) => token.startsWith('<|img_row_'));
function expectedMarks({ rows, cols }) {
    const places = Array.from({ length: rows * cols }, (_, i) => [Math.floor(i / cols) + 1, (i % cols) + 1]);
    return rows * cols > 1 ? places.map(([row, col]) => `<|img_row_${row}_col_${col}|>`) : [];
}

function same(found, expected, what) {
    if (JSON.stringify(found) !== JSON.stringify(expected)) {
        throw new Error(`${what}: ${JSON.stringify(found)} instead of ${JSON.stringify(expected)}`);
    }
}

/** The values of all patches, without padding. */
function valid(values, mask) {
    const [, , width] = values.dims;
    const kept = Array.from(mask.data.keys()).filter((patch) => mask.data[patch] === 1n);
    const patches = new Float32Array(kept.length * width);
    kept.forEach((patch, i) => patches.set(values.data.subarray(patch * width, (patch + 1) * width), i * width));
    return patches;
}

const levels = (values) => Uint8Array.from(values, (value) => Math.round((value * 0.5 + 0.5) * 255));

async function checkImage(entry) {
    const dims = [entry.height, entry.width, 3];
    const count = dims.reduce((a, b) => a * b);
    const pixels = new ort.Tensor('uint8', entry.hashed ? noise(count, entry.seed) : new Uint8Array(count), dims);
    const found = await (await session(entry.graph)).run({ pixels });
    const shapes = Array.from(found.spatial_shapes.data, Number);
    same(shapes, entry.spatial_shapes.flat(), 'spatial_shapes');
    const ids = found.image_token_ids.data;
    same(marks(ids), expectedMarks(entry), 'tiles');
    const tokens = Array.from(ids, name).filter((token) => token === '<image>').length;
    same(Number(found.tokens.data[0]), tokens, 'tokens');
    if (entry.image_tokens !== undefined) same(tokens, entry.image_tokens, 'image tokens');
    if (entry.hashed) {
        const values = valid(found.pixel_values, found.pixel_attention_mask);
        const bytes = entry.hashed === 'levels' ? levels(values) : new Uint8Array(values.buffer);
        same(createHash('sha256').update(bytes).digest('hex'), entry.sha256, 'pixels');
    }
}

async function checkSize(entry) {
    const layout = await session(`layouts/${entry.graph}`);
    const sizes = [entry.height, entry.width].map((size) => new ort.Tensor('int64', [BigInt(size)], []));
    const found = await layout.run(Object.fromEntries(layout.inputNames.map((input, i) => [input, sizes[i]])));
    same(marks(found.image_token_ids.data), expectedMarks(entry), 'tiles');
    const last = Array.from(found.spatial_shapes.data, Number).slice(-2);
    if (entry.image_size) same(last.map((patches) => 16 * patches), entry.image_size, 'size of the view');
}

// JavaScript's bindings know only the inputs that have to be there.
const images = cases.images.filter((entry) => Object.keys(entry.inputs).length === 0);
for (const [entries, check] of [[images, checkImage], [cases.sizes, checkSize]]) {
    for (const entry of entries) {
        await check(entry).catch((error) => {
            console.error(JSON.stringify(entry));
            throw error;
        });
    }
}
console.log(JSON.stringify({ onnxruntime: ort.env.versions.web, images: images.length, sizes: cases.sizes.length }));
