"""Importance of settings: functional ANOVA of a random forest fitted to the trials (optuna's)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rayddl.stages.tune.plan import Search
from rayddl.stages.tune.store import Row
from rayddl.stages.tune.suggest import as_parameters

FEWEST = 8
"""Least number of trials for a meaningful forest."""


def importance(search: Search, rows: Iterable[Row]) -> dict[str, Any]:
    """The share of the variance that each setting explains, with the method's name; or the reason for none.

    A setting whose condition did not hold counts as the template's value if its range includes that, else as the
    middle of its range.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if search.mode == "max" else "minimize")
    for row in rows:
        if row.sound:
            found = as_parameters(search.space, {key: _value(search, row, key) for key in search.space})
            if found is not None:
                study.add_trial(
                    optuna.trial.create_trial(params=found[0], distributions=found[1], value=row.value)
                )
    if len(study.trials) < FEWEST:
        return {"method": f"too few trials: {len(study.trials)} of {FEWEST}", "values": {}}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        values = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError) as error:  # for example, all trials have the same metric
        return {"method": f"not known: {error}", "values": {}}
    return {"method": "fANOVA", "values": {key: float(value) for key, value in values.items()}}


def _value(search: Search, row: Row, key: str) -> Any:
    entry = search.space[key]
    if key in row.settings:
        return row.settings[key]
    own = search.base(key)
    return own if entry.place(own) is not None else entry.at(0.5)
