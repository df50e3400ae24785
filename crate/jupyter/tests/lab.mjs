// JupyterLab with one notebook in a headless Chromium, for the tests that look at it.
//
// Run by .ci/browser, which finds or installs what it takes. CHROMIUM names the browser.
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../..");
export const shots = process.argv[2] ?? mkdtempSync(path.join(tmpdir(), "lowbit-"));
const require = createRequire(path.join(root, ".lab/browser/package.json"));
const { chromium } = require("playwright-core");

/** A notebook of these code cells, for `open`. */
export const notebook = (cells) =>
  JSON.stringify({
    cells: cells.map((source, index) => ({
      cell_type: "code", id: `cell-${index}`, metadata: {}, execution_count: null, outputs: [], source,
    })),
    metadata: { kernelspec: { name: "lowbit", display_name: "Rust (lowbit)", language: "rust" } },
    nbformat: 4, nbformat_minor: 5,
  });

/** Opens a notebook of this text, calls `look` with its page, and ends with what it threw; `env` is for its kernel. */
export async function open(text, env, height, look) {
  mkdirSync(shots, { recursive: true });
  const name = `browser-${process.pid}.ipynb`;
  writeFileSync(path.join(root, "notebooks", name), text);
  const port = 18000 + (process.pid % 1000);
  const lab = spawn(
    path.join(root, ".lab/venv/bin/jupyter"),
    ["lab", "--no-browser", "--allow-root", `--port=${port}`, "--ServerApp.token=", "--ServerApp.password="],
    { cwd: path.join(root, "notebooks"), stdio: "ignore", env: { ...process.env, ...env } },
  );
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  let failed = null;
  let page;
  try {
    const context = await browser.newContext({ viewport: { width: 1280, height }, permissions: ["clipboard-read", "clipboard-write"] });
    page = await context.newPage();
    for (let tries = 0; ; tries++) {
      try {
        await page.goto(`http://127.0.0.1:${port}/lab/tree/${name}?reset`);
        break;
      } catch (error) {
        if (tries > 60) throw error;
        await new Promise((resolve) => setTimeout(resolve, 500));
      }
    }
    await page.locator(".jp-Notebook .jp-Cell").first().waitFor({ timeout: 60000 });
    await page.locator(".jp-NotebookPanel-toolbar >> text=Rust (lowbit)").waitFor({ timeout: 60000 });
    await look(page, name);
  } catch (error) {
    failed = error;
    await page?.screenshot({ path: path.join(shots, "failed.png") });
  } finally {
    await browser.close();
    lab.kill("SIGTERM");
    for (const left of [name, `.ipynb_checkpoints/${path.parse(name).name}-checkpoint.ipynb`]) {
      rmSync(path.join(root, "notebooks", left), { force: true });
    }
  }
  console.log(`screenshots in ${shots}`);
  if (failed) {
    console.error(`lowbit: the notebook does not show what it should: ${failed.stack ?? failed}`);
    process.exit(1);
  }
}

/** Chooses an item of JupyterLab's menu. */
export async function menu(page, ...items) {
  await page.locator(".lm-MenuBar-itemLabel", { hasText: items[0] }).click();
  for (const item of items.slice(1, -1)) await page.locator(".lm-Menu-itemLabel", { hasText: item }).hover();
  await page.locator(".lm-Menu-itemLabel", { hasText: items.at(-1) }).first().click();
}

/** Keeps a picture. */
export const shot = (target, name) => target.screenshot({ path: path.join(shots, name) });
