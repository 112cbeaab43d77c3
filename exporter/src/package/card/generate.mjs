// Answers a question, about images if you like, with plain ONNX Runtime: greedily, on the CPU.
//
//     npm install onnxruntime-node @huggingface/tokenizers sharp
//     node generate.mjs FOLDER QUESTION [IMAGE...]
//
// FOLDER is the one with tokenizer.json. Prints the new tokens' ids, then their text.
//
// Images may have any size: before you decode those of strangers, refuse absurd sizes (say, over 50
// megapixels); sharp's option limitInputPixels does. Names of special tokens in QUESTION, such as
// <|im_end|>, mean these tokens.

import { existsSync, readFileSync } from 'node:fs';
import { Tokenizer } from '@huggingface/tokenizers';
import sharp from 'sharp';
import * as ort from 'onnxruntime-node'; // or 'onnxruntime-web': WebAssembly

const SUFFIX = ''; // of the precision's files in onnx/: '' is fp32, '_q4' has weights of 4 bits
const MAX_NEW_TOKENS = 64;
const PROMPT = "<|startoftext|><|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n";

const [folder, question, ...images] = process.argv.slice(2);
const readJson = (name) => JSON.parse(readFileSync(`${folder}/${name}`, 'utf8'));

function load(name, weights = name) {
    const options = {};
    const data = `${folder}/onnx/${weights}.onnx_data`;
    // The library for the web does not look for the weights by itself.
    if (ort.env.versions.web && existsSync(data)) {
        options.externalData = [{ path: `${weights}.onnx_data`, data }];
    }
    return ort.InferenceSession.create(`${folder}/onnx/${name}.onnx`, options);
}

const tokenizer = new Tokenizer(readJson('tokenizer.json'), readJson('tokenizer_config.json'));
const imageToken = tokenizer.token_to_id('<image>');
const endTokens = [readJson('generation_config.json').eos_token_id].flat();
const imageProcessor = await load('image_processor');
const visionEncoder = await load(`vision_encoder${SUFFIX}`);
const embeddings = await load(`embeddings${SUFFIX}`, `embed_tokens${SUFFIX}`);
const decoder = await load(`decoder_model_merged${SUFFIX}`);

// What takes the place of each <image> in the prompt, and the features of all images.
const places = [];
const features = [];
for (const file of images) {
    const image = sharp(file, { ignoreIcc: true }).autoOrient().removeAlpha().toColourspace('srgb').raw();
    const { data, info } = await image.toBuffer({ resolveWithObject: true });
    const pixels = new ort.Tensor('uint8', data, [info.height, info.width, 3]);
    const { image_token_ids, pixel_values, pixel_attention_mask, spatial_shapes } =
        await imageProcessor.run({ pixels });
    places.push(Array.from(image_token_ids.data, Number));
    const views = { pixel_values, pixel_attention_mask, spatial_shapes };
    features.push((await visionEncoder.run(views)).image_features.data);
}
const hidden = visionEncoder.outputMetadata[0].shape[1];
const noFeatures = new ort.Tensor('float32', new Float32Array(0), [0, hidden]);
const joined = new Float32Array(await new Blob(features).arrayBuffer());
let image_features = new ort.Tensor('float32', joined, [joined.length / hidden, hidden]);

const content = '<image>'.repeat(images.length) + question;
const prompt = PROMPT.replace('{content}', () => content); // a function: a string's $ are special
const promptIds = tokenizer.encode(prompt, { add_special_tokens: false }).ids;
let inputIds = promptIds.flatMap((id) => (id === imageToken ? places.shift() : id));

// The decoder's state before the first token: zeros for the convolutions, nothing for the attention.
const state = {};
for (const { name, type, shape } of decoder.inputMetadata) {
    if (!name.startsWith('past')) continue;
    const sizes = shape.map((size) => ({ batch_size: 1, past_sequence: 0 })[size] ?? size);
    const count = sizes.reduce((product, size) => product * size, 1);
    const zeros = type === 'float16' ? new Uint16Array(count) : new Float32Array(count);
    state[name] = new ort.Tensor(type, zeros, sizes);
}

const tokens = [];
let total = 0;
while (tokens.length < MAX_NEW_TOKENS) {
    const input_ids = new ort.Tensor('int64', BigInt64Array.from(inputIds, BigInt), [1, inputIds.length]);
    const { inputs_embeds } = await embeddings.run({ input_ids, image_features });
    total += inputIds.length;
    const attention_mask = new ort.Tensor('int64', new BigInt64Array(total).fill(1n), [1, total]);
    const { logits, ...presents } = await decoder.run({ inputs_embeds, attention_mask, ...state });
    const last = logits.data.subarray(-logits.dims[2]);
    const token = last.reduce((best, value, id) => (value > last[best] ? id : best), 0);
    if (endTokens.includes(token)) break;
    tokens.push(token);
    for (const name in state) {
        const present = name.replace('past_key_values', 'present').replace('past_conv', 'present_conv');
        state[name] = presents[present];
    }
    inputIds = [token];
    image_features = noFeatures;
}

console.log(JSON.stringify(tokens));
console.log(tokens.length ? tokenizer.decode(tokens, { skip_special_tokens: true }) : '');
