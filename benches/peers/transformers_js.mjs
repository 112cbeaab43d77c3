// Transformers.js in Node, on an exported folder: where the time of an answer goes, as one line of JSON.
//
//     node transformers_js.mjs FOLDER DTYPE [--image FILE] [--prompt-tokens N] [--new-tokens N] [--repeat N] [--threads N]
//
// The arguments and keys are those of `lfm2vl bench --json`. It must lie beside the `node_modules` that
// `cargo xtask setup` installs from tests/javascript, and is copied there.

import path from 'node:path';
import { parseArgs } from 'node:util';
import { AutoModelForImageTextToText, AutoProcessor, load_image } from '@huggingface/transformers';

const number = (value) => ({ type: 'string', default: String(value) });
const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
        image: { type: 'string' },
        'prompt-tokens': number(512),
        'new-tokens': number(64),
        repeat: number(3),
        threads: number(2),
        cold: { type: 'boolean' },
    },
});
const [folder, dtype] = positionals;
const newTokens = Number(values['new-tokens']);
const source = path.resolve(folder);
const processor = await AutoProcessor.from_pretrained(source);
const session_options = { intraOpNumThreads: Number(values.threads) };
const model = await AutoModelForImageTextToText.from_pretrained(source, { dtype, session_options });

const words = 'The image shows a red square and a blue circle. ';
const perRepeat = processor.tokenizer(words, { add_special_tokens: false }).input_ids.dims[1];
const prompt = words.repeat(Math.ceil(Number(values['prompt-tokens']) / perRepeat));

const milliseconds = async (run) => {
    const start = performance.now();
    const result = await run();
    return [performance.now() - start, result];
};

async function inputs(image, question) {
    const content = [{ type: 'text', text: question }];
    if (image) content.unshift({ type: 'image' });
    const text = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
    const options = { add_special_tokens: false };
    return image ? processor(await load_image(image), text, options) : processor.tokenizer(text, options);
}

const generate = (given, max_new_tokens) =>
    model.generate({ ...given, do_sample: false, repetition_penalty: 1, max_new_tokens, min_new_tokens: max_new_tokens });

async function measure() {
    const report = {};
    const [preprocess, given] = await milliseconds(() => inputs(values.image, prompt));
    const [first] = await milliseconds(() => generate(given, 1));
    if (values.image) {
        const { pixel_values, pixel_attention_mask, spatial_shapes } = given;
        [report.vision_ms] = await milliseconds(() => model.encode_image({ pixel_values, pixel_attention_mask, spatial_shapes }));
        report.preprocess_ms = preprocess;
    } else {
        report.prefill_tokens_per_second = (1e3 * given.input_ids.dims[1]) / first;
    }
    report.time_to_first_token_ms = preprocess + first;
    if (newTokens > 1) {
        const [all] = await milliseconds(() => generate(given, newTokens));
        report.total_ms = preprocess + all;
        report.decode_tokens_per_second = (1e3 * (newTokens - 1)) / (all - first);
    }
    return report;
}

const median = (numbers) => numbers.sort((a, b) => a - b)[Math.floor(numbers.length / 2)];
if (!values.cold) await generate(await inputs(undefined, 'Hello'), 2);
const reports = [];
for (let i = 0; i < Number(values.repeat); i++) reports.push(await measure());
const keys = Object.keys(reports[0]);
console.log(JSON.stringify(Object.fromEntries(keys.map((key) => [key, median(reports.map((report) => report[key]))]))));
