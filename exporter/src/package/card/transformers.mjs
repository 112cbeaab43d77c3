// Answers a question about an image with Transformers.js.
//
//     npm install @huggingface/transformers
//     node transformers.mjs FOLDER IMAGE PROMPT [DTYPE] [MAX_NEW_TOKENS]
//
// FOLDER is the exported folder; an empty IMAGE ("") asks about text alone. DTYPE is fp32, fp16, q8,
// q4 or q4f16, whichever was exported. Prints the new token ids and the text as JSON.

import path from 'node:path';
import { AutoModelForImageTextToText, AutoProcessor, load_image } from '@huggingface/transformers';

const [folder, image, prompt, dtype = 'fp32', maxNewTokens = '128'] = process.argv.slice(2);

const source = path.resolve(folder); // an absolute path is never taken for a name on the hub
const processor = await AutoProcessor.from_pretrained(source);
const model = await AutoModelForImageTextToText.from_pretrained(source, { dtype });

const content = [{ type: 'text', text: prompt }];
if (image) content.unshift({ type: 'image' });
const messages = [{ role: 'user', content }];
const text = processor.apply_chat_template(messages, { add_generation_prompt: true });

// The template writes the start token itself, so the tokenizer must not add another.
const options = { add_special_tokens: false };
const inputs = image
    ? await processor(await load_image(image), text, options)
    : processor.tokenizer(text, options);

const output = await model.generate({
    ...inputs,
    do_sample: false,
    repetition_penalty: 1,
    max_new_tokens: Number(maxNewTokens),
});
const promptLength = inputs.input_ids.dims[1];
const newTokens = output.slice(null, [promptLength, null]);
const [answer] = processor.batch_decode(newTokens, { skip_special_tokens: true });
console.log(JSON.stringify({ token_ids: newTokens.tolist()[0].map(Number), text: answer }));
