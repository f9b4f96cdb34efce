"""The closing table of a run."""

from keras_transfer.evaluation.metrics import Evaluation
from keras_transfer.experiments.run import Result
from keras_transfer.export.saved_model.proof import AS_TRAINED, Proof
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.training.fitting import Outcome


def show_result(result: Result, terminal: TerminalReporter) -> None:
    """Print phases, test figures, parity of the export and where everything is."""
    rows = []
    for outcome in result.outcomes:
        rows.append(
            [
                outcome.name + ("" if outcome.kept else " (undone)"),
                f"{outcome.epochs}",
                f"{outcome.seconds:.0f}",
                f"{outcome.num_trainable:,}",
                with_interval(outcome.val_accuracy, outcome.val_interval),
                _judged(outcome),
            ]
        )
    header = ["phase", "epochs", "seconds", "trainable", "validation", "test"]
    caption = "accuracy in %, with its 95 % interval below"
    terminal.table(f"Run {result.run.path}", header, rows, caption=caption)
    terminal.info(_describe_figures(result.test))
    if result.proof:
        terminal.info(describe_proof(result.proof))
    path = result.run.path
    terminal.info(f"Model {path / 'model.keras'}, SavedModel {path / 'export' / '1'}")
    terminal.info(f"Figures {path / 'figures'}, predictions {path / 'predictions.csv'}")
    terminal.info(f"{result.seconds:.0f} seconds in all.")


def _judged(outcome: Outcome) -> str:
    """What the phase made of the test split; a search shows it to its winner alone."""
    if outcome.test_accuracy is None or outcome.test_interval is None:
        return "–"
    return with_interval(outcome.test_accuracy, outcome.test_interval)


def show_evaluation(evaluation: Evaluation, terminal: TerminalReporter) -> None:
    """Print the figures of a judgement, class by class."""
    rows = [
        [
            name,
            f"{figures.precision:.1%}",
            f"{figures.recall:.1%}",
            f"{figures.f1:.1%}",
            f"{figures.support:,}",
        ]
        for name, figures in evaluation.per_class.items()
    ]
    terminal.table("Classes", ["class", "precision", "recall", "F1", "images"], rows)
    terminal.info(_describe_figures(evaluation))


def describe_proof(proof: Proof) -> str:
    """How well artefact and model agree, and how fast the variant that was kept is."""
    parity = proof.parity
    sentences = [
        f"Export proven in a process without Keras: on {parity.num_files} test files "
        f"{parity.label_agreement:.0%} of the labels agree, probabilities within "
        f"{parity.max_abs_difference:.1e}."
    ]
    trained = proof.variants[0]
    for variant in proof.variants[1:]:
        shares = [
            f"{variant.milliseconds[size] / trained.milliseconds[size]:.2f} × for {size}"
            for size in variant.milliseconds
        ]
        status = "not faster" if variant.parity else "disagreed"
        status = "kept" if variant == proof.kept else status
        sentences.append(
            f"The network {variant.name} in {variant.precision} takes of the trained one's time "
            f"{', '.join(shares)}: {status}."
            if shares
            else f"The network {variant.name} in {variant.precision} cannot be served: left out."
        )
    if proof.kept.name == AS_TRAINED:
        sentences.append("It is served as it was trained.")
    if proof.backend == "jax":
        sentences.append(
            "XLA runs it, and compiles it anew for each size of batch. For servers without "
            "accelerators, KERAS_BACKEND=tensorflow python -m pipelines.export on this run may "
            "write a faster one."
        )
    return " ".join(sentences)


def _describe_figures(test: Evaluation) -> str:
    low, high = test.intervals["accuracy"]
    return (
        f"Accuracy {test.accuracy:.1%} ({low:.1%} to {high:.1%}), balanced accuracy "
        f"{test.balanced_accuracy:.1%}, log loss {test.log_loss:.3f}, calibration error "
        f"{test.expected_calibration_error:.3f}."
    )


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """A share in %, its interval on the line below."""
    return f"{100 * value:.1f}\n{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"
