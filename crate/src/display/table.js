// A table that sorts, filters, pages and copies in the page it stands in. `mark` names the tables that it belongs to, `all`
// holds the rows where the table shows only some of them, `total` counts those of the frame, and a page begins with `size`
// rows. Where scripts do not run the table stays as it is.
(function (mark, all, total, size) {
document.querySelectorAll('[data-rows="' + mark + '"]').forEach(function (box) {
  if (box.lively) return;
  box.lively = true;
  const table = box.querySelector("table"), heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const titles = heads.map((head) => (head.firstChild || {}).data || ""), names = titles.map((title) => title.toLowerCase());
  const numeric = heads.map((head) => getComputedStyle(head).textAlign == "right");
  const looks = [...body.rows[0].cells].map((cell) => cell.style.cssText);
  const texts = (line) => [...line.cells].map((cell) => cell.textContent);
  const rows = all || [...body.rows].map((line) => Object.assign(texts(line), { line }));
  const built = (row) => {
    row.line = document.createElement("tr");
    row.forEach((text, i) => {
      const cell = row.line.insertCell();
      cell.textContent = text;
      cell.style.cssText = looks[i];
    });
    return row.line;
  };
  const number = (text) => {
    const found = text.replace(/−/g, "-").match(/-?(\d+\.?\d*|\.\d+|inf)(e[-+]?\d+)?/i);
    return found ? +found[0].replace("inf", "Infinity") : NaN;
  };
  let by = -1, down = false, page = 0, kept = rows;
  const make = (name, into, text) => {
    const made = into.appendChild(document.createElement(name));
    made.textContent = text || "";
    made.style.cssText = "font:inherit;font-size:12px;color:inherit;background:transparent;margin:2px 4px 2px 0;padding:1px 6px;border:" +
      (name == "span" ? "0" : "1px solid rgba(128,128,128,.5);border-radius:3px");
    return made;
  };
  // `text`, or `column>0.5`; several with `&` between them.
  const terms = (asked) => asked.toLowerCase().split("&").map((part) => part.trim()).filter(Boolean).map((term) => {
    const [, name, sign, value] = term.match(/^(.*?)\s*(<=|>=|<|>|=)\s*(.*)$/) || [];
    const limit = sign && number(value), columns = [];
    names.forEach((n, i) => sign && (name ? n == name : numeric[i]) && columns.push(i));
    if (!columns.length) return (row) => row.some((cell) => cell.toLowerCase().includes(term));
    return (row) => columns.some((i) => {
      if (sign == "=" && !numeric[i]) return row[i].toLowerCase() == value;
      const v = number(row[i]);
      return sign == "=" ? v == limit : sign == "<" ? v < limit : sign == ">" ? v > limit : sign == "<=" ? v <= limit : v >= limit;
    });
  });
  const compare = (a, b) => {
    const [x, y] = numeric[by] ? [number(a[by]), number(b[by])] : [a[by], b[by]];
    const [gone, lost] = [x === "" || x !== x, y === "" || y !== y];
    if (gone || lost) return gone - lost;
    return (numeric[by] ? x - y || 0 : x.localeCompare(y, "en", { numeric: true })) * (down ? -1 : 1);
  };
  const draw = () => {
    const tests = terms(filter.value);
    kept = rows.filter((row) => tests.every((test) => test(row)));
    if (by >= 0) kept.sort(compare);
    page = Math.max(0, Math.min(page, Math.ceil(kept.length / size) - 1));
    body.replaceChildren(...kept.slice(page * size, page * size + size).map((row) => row.line || built(row)));
    heads.forEach((head, i) => {
      marks[i].textContent = i != by ? "" : down ? " ▼" : " ▲";
      head.setAttribute("aria-sort", i != by ? "none" : down ? "descending" : "ascending");
    });
    const first = page * size, last = Math.min(first + size, kept.length);
    place.textContent = (kept.length ? first + 1 + "–" + last + " of " : "") + kept.length + " rows" +
      (kept.length < rows.length ? ", filtered from " + rows.length : "") + (rows.length < total ? "; the frame has " + total : "");
    back.disabled = !page;
    next.disabled = last >= kept.length;
  };
  const tools = document.createElement("div"), filter = make("input", tools), pages = document.createElement("div");
  tools.className = pages.className = "tools";
  while (table.nextSibling) table.nextSibling.remove();
  box.insertBefore(tools, table);
  box.appendChild(pages);
  filter.placeholder = "filter: text, column>0.5, …";
  filter.size = 28;
  filter.title = "rows that contain the text; column=text, column>0.5; several with & between them";
  filter.oninput = () => { page = 0; draw(); };
  const copy = make("button", tools, "copy");
  copy.title = "the filtered rows as they are shown, with tabs between the cells";
  copy.onclick = () => {
    const text = [titles].concat(kept).map((row) => row.map((cell) => cell.replace(/\s+/g, " ")).join("\t")).join("\n");
    const done = () => { copy.textContent = "copied " + kept.length; setTimeout(() => (copy.textContent = "copy"), 1500); };
    const old = () => {
      const area = make("textarea", tools);
      area.value = text;
      area.select();
      if (document.execCommand("copy")) done();
      area.remove();
    };
    navigator.clipboard ? navigator.clipboard.writeText(text).then(done, old) : old();
  };
  const back = make("button", pages, "‹"), next = make("button", pages, "›"), choice = make("select", pages), place = make("span", pages);
  back.title = "previous rows";
  next.title = "next rows";
  choice.title = "rows of a page";
  back.onclick = () => { page--; draw(); };
  next.onclick = () => { page++; draw(); };
  [10, 25, 100].forEach((n) => choice.add(new Option(n, n)));
  choice.value = size;
  choice.onchange = () => { size = +choice.value; page = 0; draw(); };
  if (rows.length <= 10) filter.style.display = pages.style.display = "none";
  if (rows.length <= size) back.style.display = next.style.display = choice.style.display = "none";
  const marks = heads.map((head) => head.insertBefore(document.createElement("span"), head.querySelector("br,small")));
  heads.forEach((head, i) => {
    head.style.cursor = "pointer";
    head.tabIndex = 0;
    head.title = "sort";
    head.onclick = () => {
      if (by != i) [by, down] = [i, false];
      else if (!down) down = true;
      else [by, down] = [-1, false];
      draw();
    };
    head.onkeydown = (event) => {
      if (event.key != "Enter" && event.key != " ") return;
      event.preventDefault();
      head.onclick();
    };
  });
  draw();
});
})
