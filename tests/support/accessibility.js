// What keeps people from reading a page: a list of sentences, empty for a page without barriers.
// The rules of WCAG 2.2 AA that a page of text, tables and pictures can break; contrast as the browser computes it.
() => {
  const found = [];
  const say = (element, what) => found.push(`${what}: ${element.outerHTML.replace(/\s+/g, " ").slice(0, 120)}`);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const words = (element) => (element.getAttribute("aria-label") || element.textContent || "").trim();

  if (!document.documentElement.lang) found.push("the page names no language");
  if (!document.title.trim()) found.push("the page has no title");
  if (all("main").length !== 1) found.push("the page has not one <main>");
  if (all("h1").length !== 1) found.push("the page has not one <h1>");
  const view = document.querySelector("meta[name=viewport]");
  if (!view) found.push("no viewport: phones would show the page tiny");
  else if (/user-scalable\s*=\s*no|maximum-scale/.test(view.content)) say(view, "cannot be enlarged");

  let level = 0;
  for (const heading of all("h1, h2, h3, h4, h5, h6")) {
    const next = Number(heading.tagName[1]);
    if (next > level + 1) say(heading, `heading ${next} after ${level}`);
    if (!words(heading)) say(heading, "empty heading");
    level = next;
  }
  for (const image of all("img")) if ((image.getAttribute("alt") || "").trim().length < 10) say(image, "undescribed");
  for (const table of all("table")) {
    if (!table.caption || !words(table.caption)) say(table, "table without caption");
    if (!table.querySelector("th")) say(table, "table without header cells");
  }
  for (const cell of all("th")) {
    if (!["col", "row"].includes(cell.scope)) say(cell, "header cell of nothing");
    if (!words(cell)) say(cell, "empty header cell");
  }
  for (const row of all("tr")) {
    const cells = [...row.cells].reduce((sum, cell) => sum + cell.colSpan, 0);
    const head = [...row.closest("table").rows[0].cells].reduce((sum, cell) => sum + cell.colSpan, 0);
    if (cells !== head) say(row, `${cells} cells under ${head}`);
  }
  for (const element of all("section, [role=region]")) {
    const by = element.getAttribute("aria-labelledby");
    if (by ? !document.getElementById(by) : !element.getAttribute("aria-label")) say(element, "unnamed region");
  }
  for (const element of all("a[href], button, summary")) if (!words(element)) say(element, "unnamed control");
  for (const element of all("input, select, textarea")) {
    if (!element.labels.length && !element.getAttribute("aria-label")) say(element, "unlabelled field");
  }
  for (const element of all("dt, dd")) if (!element.closest("dl")) say(element, "outside of a list");
  const ids = all("[id]").map((element) => element.id);
  for (const id of new Set(ids)) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`two elements are #${id}`);
  for (const element of all("*")) {
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    if (scrolls && element.scrollWidth > element.clientWidth && element.tabIndex < 0) {
      say(element, "scrolls, but not by keyboard");
    }
  }

  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => ({
    r: top.r * top.a + below.r * (1 - top.a),
    g: top.g * top.a + below.g * (1 - top.a),
    b: top.b * top.a + below.b * (1 - top.a),
    a: 1,
  });
  const ground = (element) => {
    if (!element) return { r: 255, g: 255, b: 255, a: 1 };
    const own = parse(getComputedStyle(element).backgroundColor);
    return own.a === 1 ? own : over(own, ground(element.parentElement));
  };
  const light = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const behind = ground(element);
    const [high, low] = [light(over(parse(style.color), behind)), light(behind)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) say(element, `contrast ${ratio.toFixed(2)}`);
    if (size < 11) say(element, `letters of ${size} px`);
  }
  return found;
}
