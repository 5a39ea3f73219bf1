// DataTables sorts and filters the tables; without it they are plain tables.
// The policy in the head lets this script run by its hash, and what it makes itself: nothing that stands in the page.
const bytes = Uint8Array.from(atob(bundle), (letter) => letter.charCodeAt(0));
const { default: DataTable } = await import(URL.createObjectURL(new Blob([bytes], { type: "text/javascript" })));

// A missing number comes last in both directions: it is neither small nor large.
const missing = (a, b, sign) => (a === "" ? (b === "" ? 0 : 1) : b === "" ? -1 : sign * (a - b));
DataTable.ext.type.order["known-asc"] = (a, b) => missing(a, b, 1);
DataTable.ext.type.order["known-desc"] = (a, b) => missing(a, b, -1);

for (const table of document.querySelectorAll("table.sortable")) {
  const many = table.tBodies[0].rows.length > (table.id === "comparisons" ? 10 : 25);
  const numbers = [...table.tHead.rows[0].cells].flatMap((_, i) => table.querySelector(`tbody td:nth-child(${i + 1}).num`) ? [i] : []);
  const made = new DataTable(table, {
    order: [],
    autoWidth: false,
    paging: many,
    pageLength: table.id === "comparisons" ? 10 : 25,
    columnDefs: [{ targets: numbers, type: "known" }],
    layout: { topStart: null, topEnd: "search", bottomStart: "info", bottomEnd: many ? "paging" : null },
    language: { search: "Filter", searchPlaceholder: "any text", info: "_START_–_END_ of _TOTAL_", infoFiltered: "(of _MAX_)" },
  });
  const filters = document.querySelector(`.filters[data-for="${table.id}"]`);
  for (const select of filters.querySelectorAll("select")) {
    const column = made.column(Number(select.dataset.column));
    const values = [...new Set(column.nodes().toArray().map((cell) => cell.textContent.trim()))].sort();
    values.forEach((value) => select.add(new Option(value, value)));
    select.closest("label").hidden = values.length < 2;
    select.addEventListener("change", () => column.search(select.value, { exact: select.value !== "" }).draw());
  }
  filters.prepend(made.table().container().querySelector(".dt-search"));
  filters.hidden = false;
}
for (const box of document.querySelectorAll("[data-all]")) {
  box.addEventListener("change", () => document.getElementById(box.dataset.all).classList.toggle("whole", box.checked));
}

// Curves: a defense's are hidden and shown with its entry in the legend.
const legend = [...document.querySelectorAll(".toggle")];
const bands = document.querySelector("[data-bands]");
const show = (button, isShown) => {
  button.setAttribute("aria-pressed", isShown);
  for (const part of document.querySelectorAll(`.plot [data-series="${button.dataset.series}"]`)) part.classList.toggle("off", !isShown);
};
for (const button of legend) button.addEventListener("click", () => show(button, button.getAttribute("aria-pressed") !== "true"));
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => legend.forEach((one) => show(one, button.dataset.show === "all")));
}
if (bands) {
  const draw = () => document.getElementById("main").classList.toggle("bandless", !bands.checked);
  bands.addEventListener("change", draw);
  draw();
  bands.closest(".filters").hidden = false;
}

// Images: found by prompt, the first few of each grid at once.
const find = document.querySelector("[data-find]");
const back = document.querySelector("[data-returned]");
const search = () => {
  const text = find.value.trim().toLowerCase(), isAsked = text !== "" || back.checked;
  let count = 0;
  for (const block of document.querySelectorAll(".block")) {
    let own = 0;
    for (const body of block.querySelectorAll("tbody")) {
      const fits = body.dataset.prompt.toLowerCase().includes(text) && (!back.checked || "back" in body.dataset);
      body.hidden = isAsked && !fits;
      body.classList.toggle("fits", isAsked && fits);
      own += fits;
    }
    block.hidden = isAsked && own === 0;
    if (isAsked && own) block.open = true;
    count += own;
  }
  document.querySelector("[data-found]").textContent = isAsked ? `${count} found` : "";
};
if (find) {
  find.addEventListener("input", search);
  back.addEventListener("change", search);
  find.closest(".filters").hidden = false;
}
for (const button of document.querySelectorAll("[data-later]")) {
  button.addEventListener("click", () => { button.closest(".block").classList.add("whole"); button.remove(); });
}

// An address with an image's name opens it, beside the base's of the same prompt, attack and budget.
const box = document.getElementById("lightbox");
const rowOf = (picture) => {
  const strip = picture.closest(".strip");
  if (strip) return { lines: [[...strip.querySelectorAll(".pic")]], name: "" };
  const body = picture.closest("tbody");
  const lines = [...body.rows].map((row) => [...row.querySelectorAll(".pic")]).filter((line) => line.length);
  return { lines, name: `${picture.closest(".block").querySelector("summary").textContent.trim()}: ${body.dataset.prompt}` };
};
let shown = null;
const enlarge = (picture) => {
  const { lines, name } = rowOf(picture);
  const line = lines.find((one) => one.includes(picture)), at = line.indexOf(picture);
  const pair = lines.length > 1 ? lines.map((one) => one[at]) : at ? [line[0], picture] : [picture];
  box.querySelector("[data-name]").textContent = name;
  box.querySelector(".pair").replaceChildren(...pair.map((one) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const image = one.querySelector("img, .gone").cloneNode(true);
    figure.classList.toggle("chosen", one === picture);
    caption.textContent = (image.alt ?? image.getAttribute("aria-label")).split("; ").slice(name ? 1 : 0).join(" · ");
    figure.append(image, caption);
    return figure;
  }));
  for (const button of box.querySelectorAll("[data-step]")) button.disabled = !line[at + Number(button.dataset.step)];
  shown = { line, at };
  if (!box.open) box.showModal();
};
const step = (by) => { const next = shown?.line[shown.at + by]; if (next?.id) location.hash = next.id; };
const follow = () => {
  const target = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  if (!target) return;
  for (let around = target.closest("details"); around; around = around.parentElement.closest("details")) around.open = true;
  if (target.matches("a.pic")) enlarge(target);
  else if (box.open) box.close();
  if (target.matches(".block")) target.scrollIntoView();
};
for (const button of box.querySelectorAll("[data-step]")) button.addEventListener("click", () => step(Number(button.dataset.step)));
box.querySelector("[data-close]").addEventListener("click", () => box.close());
box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
box.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") { event.preventDefault(); step(event.key === "ArrowLeft" ? -1 : 1); }
});
document.addEventListener("click", (event) => {  // the address may be this image's already
  const picture = event.target.closest("a.pic");
  if (picture && location.hash === `#${picture.id}`) enlarge(picture);
});
window.addEventListener("hashchange", follow);
follow();
document.documentElement.dataset.ready = "true";
