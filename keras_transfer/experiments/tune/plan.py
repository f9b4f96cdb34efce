"""What a search will do, decided from its spec and its images before the first trial."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from keras_transfer.data.records import counted
from keras_transfer.errors import SpecError
from keras_transfer.experiments.trial_runner import TrialRunner, held_out
from keras_transfer.experiments.tune.effects import Trained, without_effect
from keras_transfer.experiments.tune.record import describe_rule, shown
from keras_transfer.experiments.tune.space import num_combinations
from keras_transfer.specs import ParameterSpec, RunSpec
from keras_transfer.tasks.task import Monitor


@dataclass(frozen=True)
class Plan:
    """A search whose space has only fields with an effect.

    `left_out` are the other fields that were to vary, and why. `num_trials` is the most trials,
    None where the tuner decides; `num_compared` the number of images that give a trial its score.
    `is_complete`: all combinations are tried.
    """

    spec: RunSpec
    trained: Trained
    left_out: Mapping[str, str]
    num_trials: int | None
    num_compared: int
    is_complete: bool


def plan_search(runner: TrialRunner) -> Plan:
    """The plan of the search that a runner's trials are of; the same in every process.

    Raises:
        SpecError: no field of the space has an effect.
    """
    spec, splits = runner.session.spec, runner.splits
    trained = Trained.of(spec, splits)
    left_out = without_effect(spec, trained)
    if len(left_out) == len(spec.search.space):
        raise SpecError(
            "no field of search.space has an effect on these trainings",
            expected="at least one field that changes what is trained",
            received=_grouped(left_out),
            fix="vary another field, such as search.space.model.dropout={values=[0.0,0.3]}, or "
            "change what switches these off",
        )
    space = {name: own for name, own in spec.search.space.items() if name not in left_out}
    search = replace(spec.search, space=space)
    spec = replace(spec, search=search)
    combinations = num_combinations(spec)
    is_complete = search.tuner != "hyperband" and combinations <= search.trials
    if is_complete:
        # Other tuners would propose some combinations twice, or miss some.
        spec = replace(spec, search=replace(search, tuner="grid"))
    return Plan(
        spec,
        trained,
        left_out,
        num_trials=None if search.tuner == "hyperband" else int(min(combinations, search.trials)),
        num_compared=sum(len(held_out(own)) for own in splits),
        is_complete=is_complete,
    )


def _grouped(left_out: Mapping[str, str]) -> str:
    """Fields and why they have no effect, with each reason once."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())


def describe_plan(plan: Plan, asked: RunSpec, monitor: Monitor) -> list[str]:
    """What varies, what a score is, and how many trainings there will be, in sentences.

    Args:
        asked: the spec before the plan.
    """
    space = plan.spec.search.space
    sentences = [f"The search varies {', '.join(map(_values, space, space.values()))}."]
    if plan.left_out:
        sentences.append(f"Not varied, because it would change nothing: {_grouped(plan.left_out)}.")
    return [*sentences, _describe_score(plan, monitor), _describe_length(plan, asked)]


def _values(name: str, parameter: ParameterSpec) -> str:
    if parameter.values is not None:
        return f"{name} ({', '.join(map(shown, parameter.values))})"
    step = "" if parameter.step is None else f" in steps of {shown(parameter.step)}"
    scale = ", logarithmic" if parameter.sampling == "log" else ""
    return f"{name} (from {shown(parameter.low)} to {shown(parameter.high)}{step}{scale})"


def _describe_score(plan: Plan, monitor: Monitor) -> str:
    spec = plan.spec
    images = f"{plan.num_compared:,} images"
    where = f"{images}, each held out by one of {spec.folds} folds"
    if spec.folds == 1:
        where = f"{images} of the validation split"
    text = (
        f"The score of a trial is its {describe_rule(spec.search.objective, monitor)}, on {where}"
    )
    if monitor.metric == "accuracy" and spec.search.objective == "val_score":
        text += f": one image is {monitor.format_difference(1 / plan.num_compared)}"
    return f"{text}. The test split is not used."


def _describe_length(plan: Plan, asked: RunSpec) -> str:
    search = plan.spec.search
    if plan.is_complete:
        text = f"All {counted(plan.num_trials or 0, 'combination is', 'combinations are')} tried"
        if asked.search.tuner != "grid":
            text += f", so there is nothing for search.tuner={asked.search.tuner} to choose"
    elif plan.num_trials is None:
        text = "The number of trials is that of search.tuner=hyperband"
    else:
        text = f"Up to {counted(plan.num_trials, 'trial is', 'trials are')} trained (search.trials)"
        if search.tuner == "grid" and math.isfinite(total := num_combinations(plan.spec)):
            text += f", of {total:,.0f} combinations"
    limit = f"after {search.time_budget} none is started"
    text += f"; {limit if search.time_budget else 'search.time_budget=20m would limit the time'}"
    return (
        f"{text}. Then the best trial is compared with the original spec, which is the settings "
        "without the search, evaluated on the test split and exported."
    )
