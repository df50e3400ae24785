// JupyterLab in a headless Chromium: opens the first notebook, runs it from the menu, and sees its results.
//
// Run by .ci/browser, which finds or installs what it takes; the argument is a folder for screenshots. CHROMIUM names
// the browser. Runs on a copy of the notebook.
import { spawn } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../..");
const require = createRequire(path.join(root, ".lab/browser/package.json"));
const { chromium } = require("playwright-core");
const shots = process.argv[2] ?? mkdtempSync(path.join(tmpdir(), "lowbit-"));
mkdirSync(shots, { recursive: true });
const name = `browser-${process.pid}.ipynb`;
copyFileSync(path.join(root, "notebooks/01-first-look.ipynb"), path.join(root, "notebooks", name));

const port = 18000 + (process.pid % 1000);
const lab = spawn(
  path.join(root, ".lab/venv/bin/jupyter"),
  ["lab", "--no-browser", "--allow-root", `--port=${port}`, "--ServerApp.token=", "--ServerApp.password="],
  { cwd: path.join(root, "notebooks"), stdio: "ignore", env: { ...process.env, LOWBIT_SMALL: "1", LOWBIT_RUNS: mkdtempSync(path.join(tmpdir(), "runs-")) } },
);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
let failed = null;
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 4200 } });
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
  await page.screenshot({ path: path.join(shots, "opened.png") });
  // Outputs that were committed must not be taken for new ones.
  await page.locator(".lm-MenuBar-itemLabel", { hasText: "Edit" }).click();
  await page.locator(".lm-Menu-itemLabel", { hasText: "Clear Outputs of All Cells" }).click();
  await page.locator(".lm-MenuBar-itemLabel", { hasText: "Kernel" }).click();
  await page.locator(".lm-Menu-itemLabel", { hasText: "Restart Kernel and Run All Cells" }).click();
  await page.locator(".jp-Dialog button.jp-mod-accept").click();

  await page.locator(".jp-InputPrompt", { hasText: "[*]" }).first().waitFor({ timeout: 60000 });

  // A progress bar that moves: two readings of its width.
  const bar = page.locator(".jp-OutputArea-output span > span[style*='background']").first();
  const widths = new Set();
  const ends = Date.now() + 120000;
  const last = page.locator(".jp-CodeCell").last().locator(".jp-OutputArea-output");
  while (Date.now() < ends) {
    const style = await bar.getAttribute("style", { timeout: 50 }).catch(() => null);
    const width = style?.match(/width: ?([0-9.]+)%/)?.[1];
    if (width) widths.add(width);
    if (widths.size === 2) await page.screenshot({ path: path.join(shots, "progress.png") });
    if ((await last.count()) > 0 && (await page.locator(".jp-InputPrompt", { hasText: "[*]" }).count()) === 0) break;
  }
  await page.waitForTimeout(500);
  const errors = await page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count();
  const seen = {
    errors,
    tables: await page.locator(".jp-RenderedHTMLCommon table").count(),
    figures: await page.locator(".jp-RenderedSVG svg, .jp-RenderedSVG img").count(),
    "widths of the bar": widths.size,
  };
  console.log(seen);
  await page.screenshot({ path: path.join(shots, "run.png") });
  if (errors > 0 || seen.tables < 4 || seen.figures < 2 || widths.size < 2) failed = JSON.stringify(seen);
} catch (error) {
  failed = error;
} finally {
  await browser.close();
  lab.kill("SIGTERM");
  for (const left of [name, `.ipynb_checkpoints/${path.parse(name).name}-checkpoint.ipynb`]) {
    rmSync(path.join(root, "notebooks", left), { force: true });
  }
}
console.log(`screenshots in ${shots}`);
if (failed) {
  console.error(`lowbit: the notebook does not show what it should: ${failed}`);
  process.exit(1);
}
