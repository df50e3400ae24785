// The first notebook in JupyterLab: runs it from the menu, and sees its results. The argument is a folder for screenshots.
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { menu, open, root, shot } from "./lab.mjs";

const env = { LOWBIT_SMALL: "1", LOWBIT_RUNS: mkdtempSync(path.join(tmpdir(), "runs-")) };
await open(readFileSync(path.join(root, "notebooks/01-first-look.ipynb"), "utf8"), env, 4200, async (page) => {
  await shot(page, "opened.png");
  // Outputs that were committed must not be taken for new ones.
  await menu(page, "Edit", "Clear Outputs of All Cells");
  await menu(page, "Kernel", "Restart Kernel and Run All Cells");
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
    if (widths.size === 2) await shot(page, "progress.png");
    if ((await last.count()) > 0 && (await page.locator(".jp-InputPrompt", { hasText: "[*]" }).count()) === 0) break;
  }
  await page.waitForTimeout(500);
  const errors = await page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count();
  const seen = {
    errors,
    tables: await page.locator(".jp-RenderedHTMLCommon table").count(),
    figures: await page.locator(".jp-RenderedVegaCommon5 canvas").count(),
    "widths of the bar": widths.size,
  };
  console.log(seen);
  await shot(page, "run.png");
  if (errors > 0 || seen.tables < 4 || seen.figures < 2 || widths.size < 2) throw new Error(JSON.stringify(seen));
});
