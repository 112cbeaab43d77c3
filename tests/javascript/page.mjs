// A person's visit to the server's page, in Chromium.
//
//     node page.mjs BASE_URL IMAGE_FILE [SCREENSHOT.png]
//
// Chromium is that of the package @sparticuz/chromium, or the one that the variable CHROMIUM names. IMAGE_FILE must be large enough to be split into tiles. Prints what was seen as one line of JSON.
// SCREENSHOT is the conversation as a desktop shows it.

import { readFileSync } from 'node:fs';
import path from 'node:path';
import puppeteer from 'puppeteer-core';

const PHONE = { width: 390, height: 844, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
// With other values of `isMobile` and `hasTouch` the page would be loaded again.
const DESKTOP = { ...PHONE, width: 1100, height: 800, deviceScaleFactor: 1 };

const [address, image, screenshot] = process.argv.slice(2);
const problems = [];

function check(condition, problem) {
    if (!condition) problems.push(problem);
}

const textsOf = (page, testid) =>
    page.$$eval(`[data-testid=${testid}]`, (found) => found.map((one) => one.textContent));

/** Waits until `isDone` holds for the texts of all elements with that test id. */
async function waitFor(page, testid, isDone, what) {
    const end = Date.now() + 120_000;
    while (Date.now() < end) {
        const texts = await textsOf(page, testid);
        if (isDone(texts)) return texts;
        const errors = await textsOf(page, 'error');
        if (errors.length > 0) throw new Error(`waiting for ${what}: ${errors.join(' ')}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error(`${what} did not come: ${JSON.stringify(await textsOf(page, testid))}`);
}

function watch(page) {
    const origin = new URL(address).origin;
    page.on('console', (message) => {
        if (message.type() === 'error') problems.push(`console: ${message.text()}`);
    });
    page.on('pageerror', (error) => problems.push(`exception: ${error.message}`));
    page.on('request', (request) => {
        const url = request.url();
        const own = url.startsWith('data:') || new URL(url).origin === origin;
        check(own, `loaded from elsewhere: ${url}`);
    });
}

async function paste(page, file) {
    const content = readFileSync(file).toString('base64');
    const type = { '.png': 'image/png', '.webp': 'image/webp' }[path.extname(file)] ?? 'image/jpeg';
    await page.evaluate(async (content, type) => {
        const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
        const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([bytes], 'pasted', { type }));
        const event = new ClipboardEvent('paste', { clipboardData, bubbles: true });
        document.querySelector('[data-testid=prompt]').dispatchEvent(event);
    }, content, type);
}

async function checkWidth(page, when) {
    const width = await page.evaluate(() => {
        const rights = [...document.querySelectorAll('body *')]
            .filter((element) => element.checkVisibility())
            .map((element) => element.getBoundingClientRect().right);
        return Math.max(document.documentElement.scrollWidth, ...rights);
    });
    check(width <= PHONE.width + 0.5, `${when}: ${width} px in a window of ${PHONE.width} px`);
}

/** The lines between tiles must lie over the picture, neither beside it nor on a part of it. */
async function checkGrids(page, tiles, when) {
    const [, rows, columns] = tiles.match(/(\d+) × (\d+) tiles/) ?? [];
    const grids = await page.$$eval('.preview', (previews) => previews.map((preview) => {
        const picture = preview.querySelector('img').getBoundingClientRect();
        const grid = preview.querySelector('.tiles').getBoundingClientRect();
        const sides = ['left', 'top', 'right', 'bottom'];
        const off = sides.map((side) => Math.abs(picture[side] - grid[side]));
        return { cells: preview.querySelector('.tiles').children.length, off: Math.max(...off) };
    }));
    for (const { cells, off } of grids) {
        check(cells === rows * columns, `${when}: told ${tiles}; drawn ${cells}`);
        check(off < 1, `${when}: the grid is ${off} px off the picture`);
    }
}

/** Presses Stop in the page, since a small model's answer may end before a message gets there. */
async function stopAtFirstText(page) {
    await page.evaluate(() => {
        const observer = new MutationObserver(() => {
            const last = [...document.querySelectorAll('[data-testid=answer]')].at(-1);
            const stop = document.querySelector('[data-testid=stop]');
            if (last.textContent === '' || !stop.checkVisibility()) return;
            observer.disconnect();
            stop.click();
        });
        const changes = { childList: true, characterData: true, subtree: true };
        observer.observe(document.querySelector('main'), changes);
    });
}

async function ask(page, question) {
    await page.type('[data-testid=prompt]', question);
    await page.keyboard.press('Enter');
}

async function visit(page) {
    await page.setViewport(PHONE);
    await page.goto(address);
    await page.waitForFunction(() => document.title !== 'Vision model');
    const model = await page.$eval('h1', (heading) => heading.textContent);
    await checkWidth(page, 'at first');

    const isTold = (count) => (texts) =>
        texts.length === count && texts.every((text) => /tokens$/.test(text));
    await (await page.$('[data-testid=file]')).uploadFile(image);
    await waitFor(page, 'tiles', isTold(1), 'the tiles of the chosen image');
    await paste(page, image);
    const tiles = await waitFor(page, 'tiles', isTold(2), 'the tiles of the pasted image');
    check(tiles[0] === tiles[1], 'the same image has other tiles when pasted');
    await checkGrids(page, tiles[0], 'before sending');
    await checkWidth(page, 'with two images');

    await ask(page, 'What is in these images?');
    const [stats] = await waitFor(page, 'stats', (texts) => texts.length === 1, 'the stats');
    const [answer] = await textsOf(page, 'answer');
    check(answer !== '', 'the answer is empty');
    check(/ prompt tokens/.test(stats), `the stats say: ${stats}`);
    await checkGrids(page, tiles[0], 'after sending');
    await checkWidth(page, 'with an answer');

    await stopAtFirstText(page);
    await ask(page, 'Tell me a long story about them.');
    const ends = await waitFor(page, 'stats', (texts) => texts.length === 2, 'the stop');
    check(/stopped/.test(ends[1]), `the second answer ended before it was stopped: ${ends[1]}`);
    const [, stopped] = await textsOf(page, 'answer');
    check(stopped !== '', 'the second answer was stopped before it began');
    await page.waitForSelector('[data-testid=send]', { visible: true });
    await checkWidth(page, 'at last');
    return { model, tiles, answer, stats, stopped };
}

/** The package's own Chromium, with the libraries that it needs, which it unpacks where it believes to be. */
async function packagedChromium() {
    process.env.AWS_EXECUTION_ENV ??= 'AWS_Lambda_nodejs22.x';
    const { default: chromium } = await import('@sparticuz/chromium');
    return chromium.executablePath();
}

const args = ['--no-sandbox']; // so that it starts in a container, as root
const executablePath = process.env.CHROMIUM ?? await packagedChromium();
const browser = await puppeteer.launch({ executablePath, args });
try {
    const page = await browser.newPage();
    watch(page);
    const seen = await visit(page);
    if (screenshot) {
        await page.setViewport(DESKTOP);
        await page.$eval('main', (log) => { log.scrollTop = 0; });
        await page.screenshot({ path: screenshot });
    }
    if (problems.length > 0) throw new Error(problems.join('\n'));
    console.log(JSON.stringify(seen));
} finally {
    await browser.close();
}
