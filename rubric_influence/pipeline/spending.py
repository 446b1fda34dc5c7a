"""What a run of the pipeline asked models for and what that cost, by stage."""

import json
from pathlib import Path

import pandas as pd

from rubric_influence.core.paths import METRICS
from rubric_influence.engines.ledger import Ledger


def tabulate_stages(metrics: Path = METRICS) -> pd.DataFrame:
    """One row for each stage, kind of request and model, over all seeds, with a last row of their sums.

    Raises ValueError where no stage has been run.
    """
    rows = []
    for stage in ("initial", "generators", "final"):  # those that ask models for texts
        if (path := metrics / f"{stage}.json").is_file():
            total = Ledger()
            for report in json.loads(path.read_text(encoding="utf-8"))["ledger"].values():
                total.restore(report)
            rows += [{"stage": stage, "what": name, **counts} for name, counts in total.report().items()]
    if not rows:
        raise ValueError(f"no stage has left its ledger in {metrics}; run the pipeline first: make repro")
    table = pd.DataFrame(rows).fillna(0).set_index(["stage", "what"])
    table.loc[("all", ""), :] = table.sum()
    return table.astype({name: int for name in table.columns if name != "usd"})
