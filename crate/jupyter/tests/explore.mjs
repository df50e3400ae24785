// What answers to the pointer: a figure, a table, controls, the stop button, an exported page. The argument is a folder for
// screenshots.
import { execFileSync } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { menu, notebook, open, root, shot } from "./lab.mjs";

const cells = [
  'let records = Frame::load("recall")?;\nfigure::passkey(&records)?',
  'let kept = 41;\nrecords.filter("row", "summary")?',
  'let shown = records.clone();\nslider("bits", 2..=8).and(toggle("points", false)).bind(move |(bits, points)| {\n' +
    '    let figure = figure::passkey(&shown)?.title(format!("{bits} bits"));\n    Ok::<_, Error>(if points { figure.points() } else { figure })\n});',
  'for line in 0.. { println!("{line}"); }',
  "kept + 1",
  'let model = Model::load("random:mamba2-tiny")?;\nPasskey::lengths([2048]).trials(100_000).measure(&model)?',
  "kept + 2",
];
const check = (what, ok, more = "") => {
  console.log(ok ? "ok  " : "FAIL", what, ok ? "" : more);
  if (!ok) throw new Error(`${what} ${more}`);
};

await open(notebook(cells), {}, 3000, async (page) => {
  const cell = (index) => page.locator(".jp-CodeCell").nth(index);
  const prompt = (index) => cell(index).locator(".jp-InputPrompt");
  const text = async (index) => (await cell(index).locator(".jp-OutputArea-output").allInnerTexts()).join("\n");
  // A key that comes before the page is ready is lost.
  const run = async (index) => {
    for (let tries = 0; tries < 20; tries++) {
      await cell(index).locator(".cm-content").click();
      await page.keyboard.press("Control+Enter");
      for (let wait = 0; wait < 10; wait++) {
        if (/[*\d]/.test(await prompt(index).innerText())) return;
        await page.waitForTimeout(100);
      }
    }
  };
  const ended = async (index) => {
    await page.waitForFunction(
      (at) => /\[\d+\]/.test(document.querySelectorAll(".jp-CodeCell")[at].querySelector(".jp-InputPrompt").innerText),
      index, { timeout: 120000 },
    );
  };

  // A figure.
  await run(0);
  const canvas = (index) => cell(index).locator(".jp-RenderedVegaCommon5 canvas");
  await canvas(0).waitFor({ timeout: 60000 });
  await page.waitForTimeout(500);
  const box = await canvas(0).boundingBox();
  const at = (x, y) => [box.x + x, box.y + y];
  const hover = async () => {
    await page.mouse.move(...at(400, 300));
    await page.mouse.move(...at(365, 300), { steps: 4 });
    await page.waitForTimeout(300);
    return (await page.locator("#vg-tooltip-element.visible").allInnerTexts()).join(" ").replace(/\s+/g, " ");
  };
  const told = await hover();
  check("a point tells its series, value and interval", /series/.test(told) && /interval/.test(told) && / to /.test(told), told);
  await shot(page, "hover.png");
  const still = async () => {
    await page.mouse.move(...at(700, 490));
    await page.waitForTimeout(400);
    return canvas(0).screenshot();
  };
  const whole = await still();
  const name = await nameOf(canvas(0));
  await page.mouse.click(...at(...name));
  const toggled = await still();
  check("a click on a name hides its series", !whole.equals(toggled));
  await page.mouse.click(...at(...name));
  await page.keyboard.down("Control");
  await page.mouse.move(...at(250, 120));
  await page.mouse.down();
  await page.mouse.move(...at(500, 380), { steps: 8 });
  await page.mouse.up();
  await page.keyboard.up("Control");
  const brushed = await still();
  check("a brush dims what is outside", !whole.equals(brushed));
  await shot(canvas(0), "brush.png");
  await page.mouse.dblclick(...at(300, 250));

  // A table.
  await run(1);
  const table = cell(1).locator("[data-rows]").first();
  await table.waitFor({ timeout: 60000 });
  const column = async (index) => table.locator(`tbody tr td:nth-child(${index})`).allInnerTexts();
  const numeric = await table.locator("th").evaluateAll((heads) => heads.findIndex((head) => head.style.textAlign === "right"));
  const before = await column(numeric + 1);
  await table.locator("th").nth(numeric).click();
  const sorted = (await column(numeric + 1)).filter(Boolean).map((entry) => Number(entry.replace("−", "-")));
  check("a click on a head sorts", sorted.every((value, index) => index === 0 || sorted[index - 1] <= value), `${before} ${sorted}`);
  await shot(table, "sorted.png");

  // Controls: a key on the slider is a step of it.
  await run(2);
  await ended(2);
  await canvas(2).waitFor({ timeout: 60000 });
  const handle = cell(2).locator(".noUi-handle").first();
  await handle.waitFor({ timeout: 60000 });
  await page.waitForTimeout(1000);
  const times = [];
  for (let step = 0; step < 5; step++) {
    const old = await canvas(2).evaluate((node) => node.toDataURL());
    const begun = Date.now();
    await handle.press("ArrowRight");
    await page.waitForFunction(
      ([index, old]) => {
        const node = document.querySelectorAll(".jp-CodeCell")[index].querySelector(".jp-RenderedVegaCommon5 canvas");
        return node && node.toDataURL() !== old;
      },
      [2, old], { timeout: 10000 },
    );
    times.push(Date.now() - begun);
  }
  console.log("     step of the slider → figure, ms:", times.join(", "));
  const checked = await canvas(2).evaluate((node) => node.toDataURL());
  await cell(2).locator("input[type=checkbox]").click();
  await page.waitForFunction(
    ([index, old]) => {
      const node = document.querySelectorAll(".jp-CodeCell")[index].querySelector(".jp-RenderedVegaCommon5 canvas");
      return node && node.toDataURL() !== old;
    },
    [2, checked], { timeout: 10000 },
  );
  check("a slider and a toggle change the figure", true);
  await shot(cell(2), "controls.png");

  // An endless print, stopped by the button; its variables stay.
  await run(3);
  await page.waitForFunction(() => document.querySelectorAll(".jp-CodeCell")[3].innerText.includes("\n100\n"), null, { timeout: 60000 });
  await page.locator("[data-command='notebook:interrupt-kernel'], [data-jp-item-name='interrupt'] button, [data-jp-item-name='interrupt']").first().click();
  await ended(3);
  check("an endless print is stopped", /interrupted/.test(await text(3)), (await text(3)).slice(-200));
  await run(4);
  await ended(4);
  check("and the variables are as before it", (await text(4)).trim() === "42", await text(4));

  // A bar with a button.
  await run(5);
  const stop = cell(5).locator("button", { hasText: "stop" });
  await stop.waitFor({ timeout: 120000 });
  await shot(cell(5), "bar.png");
  await stop.click();
  await ended(5);
  check("the button beside a bar stops the cell", /interrupted/.test(await text(5)), (await text(5)).slice(0, 300));
  await run(6);
  await ended(6);
  check("and the variables are as before it", (await text(6)).trim() === "43", await text(6));

  await shot(page, "explore-light.png");
  await menu(page, "Settings", /^Theme$/, "JupyterLab Dark");
  await page.waitForTimeout(2000);
  await shot(page, "explore-dark.png");

  // One file that opens without a server.
  const file = path.join(mkdtempSync(path.join(tmpdir(), "report-")), "recall.html");
  execFileSync(process.env.LOWBIT ?? "cargo", process.env.LOWBIT ? ["report", "recall", "--out", file] : ["run", "--release", "--quiet", "--", "report", "recall", "--out", file], { cwd: root });
  const asked = [];
  const report = await page.context().newPage();
  report.on("request", (request) => asked.push(request.url()));
  await report.goto(`file://${file}`);
  await report.waitForTimeout(2000);
  check("an exported page asks for nothing from outside", asked.every((url) => /^(file|data|blob):/.test(url)), asked.join(" "));
  check("and shows figures and tables", (await report.locator("table").count()) > 0 && (await report.locator("svg, canvas").count()) > 0);
  const rows = report.locator("[data-rows]").first();
  const counted = await rows.locator("tbody tr").count();
  await rows.locator("th").nth(1).press("Enter");
  const cells = await rows.locator("tbody tr td:nth-child(2)").allInnerTexts();
  const values = cells.map((text) => Number.parseFloat(text.replace("−", "-"))).filter((value) => !Number.isNaN(value));
  check("whose tables sort whole", cells.length === counted && values.every((value, i) => i === 0 || values[i - 1] <= value), `${cells}`);
  await shot(report, "report.png");
});

/** Where the first name of a series stands in a figure: the colour of its line, right of the plot. */
async function nameOf(canvas) {
  return canvas.evaluate((node) => {
    const scale = node.width / node.getBoundingClientRect().width;
    const [left, top] = [Math.round(600 * scale), Math.round(100 * scale)];
    const pixels = node.getContext("2d").getImageData(left, top, node.width - left, node.height - top);
    for (let y = 0; y < pixels.height; y++) {
      for (let x = pixels.width - 1; x > 40 * scale; x--) {
        const [r, g, b] = pixels.data.slice((y * pixels.width + x) * 4);
        if (Math.max(r, g, b) - Math.min(r, g, b) > 60) return [(left + x) / scale - 4, (top + y) / scale + 3];
      }
    }
    return [690, 417];
  });
}
