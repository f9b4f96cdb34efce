"""The network of a spec: the model with the layers that the methods of its phases add."""

from collections.abc import Callable, Sequence

from keras_transfer.backbones.adapters import Adapters
from keras_transfer.methods.method import Method
from keras_transfer.methods.registry import make_method
from keras_transfer.models.classifier import Classifier, build_classifier
from keras_transfer.specs import PhaseSpec, RunSpec
from keras_transfer.tasks.task import Task


def prepare_classifier(
    spec: RunSpec,
    task: Task,
    *,
    build: Callable[..., Classifier] = build_classifier,
) -> Classifier:
    """Build the spec's classifier, untrained.

    `build` is `build_classifier`, or a `Rebuilder` where many are trained.

    Raises:
        SpecError: an unknown backbone or stage, in the model or in a phase, or too small images.
        WeightsError: the trunk's weights are missing or do not fit.
    """
    methods = [make_method(phase, number) for number, phase in enumerate(spec.phases)]
    classifier = build(
        spec.model,
        image_size=spec.data.image_size,
        channels=spec.data.channels,
        task=task,
        seed=spec.seed,
        adapters=adapters_of(methods, spec.phases),
    )
    for number, phase in enumerate(spec.phases):
        classifier.from_stage(phase.unfreeze, field=f"phases.{number}.unfreeze")
    return classifier


def adapters_of(methods: Sequence[Method], phases: Sequence[PhaseSpec]) -> Adapters | None:
    """The adapters of the first phase that has any: others have the same."""
    found = (
        method.adapters(phase, number)
        for number, (method, phase) in enumerate(zip(methods, phases, strict=True))
    )
    return next((adapters for adapters in found if adapters), None)
