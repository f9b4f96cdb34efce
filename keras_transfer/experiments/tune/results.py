"""The results of a finished search in Python: search.json, with its trials as a table."""

from typing import Any

from keras_transfer.experiments.tune.record import COMPLETED, shown
from keras_transfer.reporting.tables import Table


class SearchResults(dict[str, Any]):
    """The content of search.json, a dict, with `trials`, `best` and `recommended` in short forms.

    `repr` and notebooks show the trials as a table.
    """

    @property
    def trials(self) -> list[dict[str, Any]]:
        """A row for each trial, the best first, as for `pandas.DataFrame(search.trials)`.

        Columns are `rank` (from 1, None if it failed), `trial` (its name), the metric as in Keras's
        logs such as `val_accuracy` (a share of 1), `val_loss`, the fields that varied, `epochs`,
        `seconds` and `status`.
        """
        return [
            {
                "rank": trial["rank"],
                "trial": trial["name"],
                f"val_{self['metric']}": trial["val_score"],
                "val_loss": trial["val_loss"],
                **trial["values"],
                "epochs": trial["epochs"],
                "seconds": trial["seconds"],
                "status": trial["status"],
            }
            for trial in self["trials"]
        ]

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best trial, the first of `trials`."""
        return self.trials[0]

    @property
    def recommended(self) -> str:
        """ "winner" for the run of the best trial, or "default" for the original spec."""
        return str(self["recommendation"]["take"])

    def __repr__(self) -> str:
        recommendation = self["recommendation"]
        next_command = f"Next: {recommendation['command']}"
        sentence = f"Recommendation: {recommendation['sentence']}"
        return f"{self._table().markdown()}\n\n{sentence}\n\n{next_command}"

    def _repr_markdown_(self) -> str:
        return repr(self)

    def _table(self) -> Table:
        rows = self.trials
        names = [name for name in rows[0] if name != "status"]
        cells = [[_cell(row, name) for name in names] for row in rows]
        return Table("Search", names, cells)


def _cell(row: dict[str, Any], name: str) -> str:
    if name == "rank" and row["status"] != COMPLETED:
        return row["status"]
    return "–" if row[name] is None else shown(row[name])
