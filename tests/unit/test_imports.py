"""The import graph, with what is imported for types alone: the import contracts leave that out."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp


def test_no_module_imports_one_that_imports_it() -> None:
    """A cycle raises ``graphlib.CycleError``, which names its modules."""
    graph = grimp.build_graph("rayddl", cache_dir=None)
    # A function that Ray pickles whole imports its own module.
    imports = {module: graph.find_modules_directly_imported_by(module) - {module} for module in graph.modules}
    TopologicalSorter(imports).prepare()
