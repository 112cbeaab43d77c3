// Asks `lfm2vl serve` with OpenAI's own client for JavaScript.
//
//     node openai_client.mjs BASE_URL SAMPLES_FOLDER
//
// BASE_URL is like http://127.0.0.1:8080/v1, of a server with the sample model in float32 and default settings,
// which nobody else asks meanwhile; SAMPLES_FOLDER has samples.json and its images. Prints one line of JSON: what
// each check saw. Fails when one of them did; the others are made all the same.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import OpenAI from 'openai';

const [baseURL, samplesFolder] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0, timeout: 120_000 });
const chat = client.chat.completions;
const { data: [model] } = await client.models.list();
const questions = JSON.parse(readFileSync(path.join(samplesFolder, 'samples.json'), 'utf8'));

const text = (content) => [{ role: 'user', content }];
const options = (messages, more = {}) => ({ model: model.id, messages, temperature: 0, max_tokens: 200, ...more });

function image(name) {
    const type = name.endsWith('.png') ? 'image/png' : 'image/jpeg';
    const url = `data:${type};base64,${readFileSync(path.join(samplesFolder, name)).toString('base64')}`;
    return { type: 'image_url', image_url: { url } };
}

function messagesOf({ images, prompt, system }) {
    const content = [...images.map(image), { type: 'text', text: prompt }];
    return [...(system ? [{ role: 'system', content: system }] : []), { role: 'user', content }];
}

async function images() {
    const some = questions.filter(({ images }) => images.length > 0).slice(0, 30);
    for (const question of some) {
        const { choices: [choice], usage } = await chat.create(options(messagesOf(question)));
        assert.equal(choice.message.content, question.answer);
        assert.ok(usage.prompt_tokens_details.image_tokens > 0);
    }
    const all = await Promise.all(some.map((question) => chat.create(options(messagesOf(question)))));
    assert.deepEqual(all.map(({ choices: [choice] }) => choice.message.content), some.map(({ answer }) => answer));
    return { questions: some.length };
}

async function streams() {
    const ask = options(text('Send me an emoji.'), { stream: true, stream_options: { include_usage: true } });
    let [content, reason, usage] = ['', null, null];
    for await (const chunk of await chat.create(ask)) {
        content += chunk.choices[0]?.delta.content ?? '';
        reason = chunk.choices[0]?.finish_reason ?? reason;
        usage = chunk.usage ?? usage;
    }
    const whole = await chat.create(options(ask.messages));
    assert.deepEqual([content, reason], [whole.choices[0].message.content, 'stop']);
    assert.equal(usage.total_tokens, whole.usage.total_tokens);

    let pieces = '';
    const stream = chat.stream(options(ask.messages)).on('content', (delta) => (pieces += delta));
    assert.equal(await stream.finalContent(), content);
    assert.equal(pieces, content);
    return { content, completion_tokens: usage.completion_tokens };
}

/** Choices come in order to the client that puts the stream together, whichever is written first. */
async function choices() {
    for (let seed = 0; seed < 10; seed += 1) {
        const ask = options(text('Purple elephants?'), { n: 4, seed, temperature: 2, max_tokens: 30 });
        const whole = await chat.create(ask);
        const final = await chat.stream(ask).finalChatCompletion();
        const texts = ({ choices }) => choices.map(({ index, message }) => [index, message.content]);
        assert.deepEqual(texts(final), texts(whole));
    }
    return { n: 4 };
}

const parameters = {
    type: 'object',
    properties: {
        city: { type: 'string', enum: ['Paris', 'Rome'] },
        days: { type: 'integer', minimum: 1, maximum: 9 },
    },
    required: ['city', 'days'],
    additionalProperties: false,
};

async function tools() {
    const tools = [{ type: 'function', function: { name: 'weather', strict: true, parameters } }];
    const ask = text('How is the weather?');
    const required = { tools, tool_choice: 'required', parallel_tool_calls: false };
    const { choices: [whole] } = await chat.create(options(ask, required));
    const [call] = whole.message.tool_calls;
    assert.equal(whole.finish_reason, 'tool_calls');
    assert.ok(parameters.properties.city.enum.includes(JSON.parse(call.function.arguments).city));

    const final = await chat.stream(options(ask, required)).finalChatCompletion();
    const [{ function: streamed }] = final.choices[0].message.tool_calls;
    assert.deepEqual([streamed.name, streamed.arguments], ['weather', call.function.arguments]);
    assert.equal(final.choices[0].finish_reason, 'tool_calls');

    const result = { role: 'tool', tool_call_id: call.id, content: '{"sky": "clear"}' };
    const replies = [];
    for (const message of [whole.message, final.choices[0].message]) {
        const reply = await chat.create(options([...ask, message, result], { tools, tool_choice: 'none' }));
        replies.push(reply.choices[0].message.content);
    }
    assert.ok(replies[0] && replies[0] === replies[1]);

    // The client calls the function itself.
    const given = [];
    const weather = (found) => given.push(found) && 'clear';
    const runnable = { name: 'weather', parameters, parse: JSON.parse, function: weather };
    const named = { type: 'function', function: { name: 'weather' } };
    const run = { tools: [{ type: 'function', function: runnable }], tool_choice: named, parallel_tool_calls: false };
    for (const stream of [false, true]) {
        await chat.runTools(options(ask, { ...run, stream })).done();
    }
    assert.deepEqual(given, [JSON.parse(call.function.arguments), JSON.parse(call.function.arguments)]);
    return { call: call.function, reply: replies[0] };
}

async function schema() {
    const form = { type: 'json_schema', json_schema: { name: 'weather', strict: true, schema: parameters } };
    const ask = options(text('How is the weather?'), { response_format: form });
    const { choices: [{ message }] } = await chat.create(ask);
    const parsed = JSON.parse(message.content);
    assert.deepEqual(Object.keys(parsed), ['city', 'days']);
    assert.ok(parsed.days >= 1 && parsed.days <= 9);
    assert.equal(await chat.stream(ask).finalContent(), message.content);
    return parsed;
}

async function figures() {
    const response = await fetch(`${baseURL.replace(/\/v1$/, '')}/metrics`);
    const lines = (await response.text()).matchAll(/^lfm2vl_requests_(\w+) (\d+)$/gm);
    return Object.fromEntries([...lines].map(([, name, value]) => [name, Number(value)]));
}

/** Nothing goes on for clients that have left. */
async function leaving() {
    const length = { n: 4, max_tokens: model.context_length - 100, ignore_eos: true };
    const endless = options(text('Purple elephants?'), length);
    const ways = {
        async whole(controller) {
            setTimeout(() => controller.abort(), 500);
            await assert.rejects(chat.create(endless, { signal: controller.signal }), OpenAI.APIUserAbortError);
        },
        async stream(controller) {
            const stream = await chat.create({ ...endless, stream: true }, { signal: controller.signal });
            let chunks = 0;
            for await (const _ of stream) {
                chunks += 1;
                if (chunks === 20) {
                    assert.equal((await figures()).active, 4);
                    controller.abort();
                }
            }
        },
        async timeout() {
            await assert.rejects(chat.create(endless, { timeout: 500 }), OpenAI.APIConnectionTimeoutError);
        },
    };
    for (const [name, way] of Object.entries(ways)) {
        const before = await figures();
        await way(new AbortController());
        const end = Date.now() + 2000;
        let now = await figures();
        while (now.active > 0 || now.waiting > 0 || now.cancelled_total < before.cancelled_total + 4) {
            assert.ok(Date.now() < end, `${name}, two seconds later: ${JSON.stringify([before, now])}`);
            await new Promise((resolve) => setTimeout(resolve, 20));
            now = await figures();
        }
        assert.equal(now.finished_total, before.finished_total, name);
    }
    return Object.keys(ways);
}

async function errors() {
    const long = text('hello '.repeat(model.context_length));
    const file = [{ type: 'image_url', image_url: { url: 'file:///etc/passwd' } }];
    const cases = [
        [{ model: 'nobody' }, OpenAI.NotFoundError, 'model', 'model_not_found'],
        [{ temperature: 3 }, OpenAI.BadRequestError, 'temperature', null],
        [{ top_p: 'all' }, OpenAI.BadRequestError, 'top_p', null],
        [{ messages: long }, OpenAI.BadRequestError, 'messages', 'context_length_exceeded'],
        [{ messages: text(file) }, OpenAI.BadRequestError, 'messages[0].content[0].image_url', null],
    ];
    for (const [more, kind, param, code] of cases) {
        for (const stream of [false, true]) {
            const found = await chat.create(options(text('Hello'), { ...more, stream })).catch((error) => error);
            assert.ok(found instanceof kind, `${param}: ${found}`);
            assert.deepEqual([found.param, found.code], [param, code]);
            assert.equal(found.type, 'invalid_request_error');
            assert.ok(found.requestID);
        }
    }
    return { refused: cases.length };
}

const failed = [];
const seen = { model: model.id };
for (const check of [images, streams, choices, tools, schema, leaving, errors]) {
    try {
        seen[check.name] = await check();
    } catch (error) {
        console.error(error);
        failed.push(check.name);
    }
}
console.log(JSON.stringify({ ...seen, failed }));
process.exitCode = failed.length > 0 ? 1 : 0;
