// DataTables sorts and filters the tables; without it they are plain tables.
const { default: DataTable } = await import(bundle);

// A missing number comes last in both directions: it is neither small nor large.
const missing = (a, b, sign) => (a === "" ? (b === "" ? 0 : 1) : b === "" ? -1 : sign * (a - b));
DataTable.ext.type.order["known-asc"] = (a, b) => missing(a, b, 1);
DataTable.ext.type.order["known-desc"] = (a, b) => missing(a, b, -1);

for (const table of document.querySelectorAll("table.sortable")) {
  const many = table.tBodies[0].rows.length > 25;
  const numbers = [...table.tHead.rows[0].cells].flatMap((_, i) => table.querySelector(`tbody td:nth-child(${i + 1}).num`) ? [i] : []);
  const made = new DataTable(table, {
    order: [],
    autoWidth: false,
    paging: many,
    pageLength: 25,
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
document.documentElement.dataset.ready = "true";
