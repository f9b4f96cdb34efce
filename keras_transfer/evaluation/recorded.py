"""An evaluation as a run folder keeps it, without the images it was made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_transfer.evaluation.results import Headline, Table
from keras_transfer.reporting import tables as reporting

PARTS = "targets"
"""The figure of an evaluation that has those of its parts, by name."""

_TITLES = {"f1": "F1", "support": "images"}


@dataclass(frozen=True, repr=False)
class RecordedEvaluation:
    """Figures of metrics.json; each is an attribute, such as `evaluation.accuracy`.

    For single labels it has the attributes of `SingleLabelEvaluation`, as JSON has them: lists in
    place of arrays and tuples, dicts in place of `ClassFigures`, and `interval` for the accuracy.
    """

    figures: Mapping[str, Any]
    """What an evaluation's `to_dict` returns. Its first number with decimals is the headline;
    `intervals` has 95 % intervals by name."""

    def __getattr__(self, name: str) -> Any:
        figures = self.__dict__.get("figures", {})
        if name not in figures:
            raise AttributeError(f"this evaluation has {', '.join(figures)}, but no {name!r}")
        return figures[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.figures]

    def __repr__(self) -> str:
        return self.describe()

    def _repr_markdown_(self) -> str:
        """What notebooks show: the sentence, and the tables by class, label or column."""
        tables = (reporting.Table(*table).markdown() for table in self.tables())
        return "\n\n".join([self.describe(), *tables])

    @property
    def headline(self) -> Headline:
        """The figure to compare by."""
        name, value = next(iter(self._numbers().items()))
        return Headline(name, value, self._interval(name) or self.figures["interval"])

    def to_dict(self) -> dict[str, Any]:
        """Numbers, lists and dicts that JSON can hold."""
        return dict(self.figures)

    def describe(self) -> str:
        """All single figures, with their intervals, in a sentence."""
        parts = []
        for name, value in self._numbers().items():
            interval = self._interval(name)
            ends = f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
            parts.append(f"{name.replace('_', ' ')} {value:.3g}{ends}")
        text = ", ".join(parts)
        return f"{text[:1].upper()}{text[1:]}."

    def tables(self) -> list[Table]:
        """The figures by class, label or column."""
        tables = []
        for name, rows in self.figures.items():
            if not isinstance(rows, Mapping) or not rows:
                continue
            first = next(iter(rows.values()))
            if name == PARTS:
                for of, own in rows.items():
                    found = RecordedEvaluation(own).tables()
                    tables += [table._replace(title=f"{of}: {table.title}") for table in found]
            elif isinstance(first, Mapping):
                columns = [key for key, value in first.items() if _is_number(value)]
                header = [name.removeprefix("per_"), *(_TITLES.get(key, key) for key in columns)]
                cells = [[of, *(_shown(own[key]) for key in columns)] for of, own in rows.items()]
                tables.append(Table(name.replace("_", " ").capitalize(), header, cells))
        return tables

    def _numbers(self) -> dict[str, float]:
        return {name: value for name, value in self.figures.items() if isinstance(value, float)}

    def _interval(self, name: str) -> tuple[float, float] | None:
        interval = self.figures.get("intervals", {}).get(name)
        return tuple(interval) if interval else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
