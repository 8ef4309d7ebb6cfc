// Tables sort by a click or the keyboard on a heading. Without scripts they stand as they are.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("number");
      const sorted = head.getAttribute("aria-sort");
      const down = sorted ? sorted === "ascending" : numeric;
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (!numeric) return x.localeCompare(y, undefined, { numeric: true }) * (down ? -1 : 1);
        if (x === "" || y === "") return (x === "") - (y === "");
        return (x - y) * (down ? -1 : 1);
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.replaceChildren(...rows);
    });
  });
}
