"""The closing table of a run."""

from keras_transfer.evaluation.results import Evaluation
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
                with_interval(outcome.val_score, outcome.val_interval),
                _judged(outcome),
            ]
        )
    header = ["phase", "epochs", "seconds", "trainable", "validation", "test"]
    caption = "accuracy in %, with its 95 % interval below"
    terminal.table(f"Run {result.run.path}", header, rows, caption=caption)
    terminal.info(result.test.describe())
    if result.proof:
        terminal.info(describe_proof(result.proof))
    path = result.run.path
    terminal.info(f"Model {path / 'model.keras'}, SavedModel {path / 'export' / '1'}")
    terminal.info(f"Figures {path / 'figures'}, predictions {path / 'predictions.csv'}")
    terminal.info(f"{result.seconds:.0f} seconds in all.")


def _judged(outcome: Outcome) -> str:
    """What the phase made of the test split; a search shows it to its winner alone."""
    if outcome.test_score is None or outcome.test_interval is None:
        return "–"
    return with_interval(outcome.test_score, outcome.test_interval)


def show_evaluation(evaluation: Evaluation, terminal: TerminalReporter) -> None:
    """Print the figures of an evaluation."""
    for table in evaluation.tables():
        terminal.table(*table)
    terminal.info(evaluation.describe())


def describe_proof(proof: Proof) -> str:
    """How well artefact and model agree, and what the way that was kept is worth."""
    parity = proof.parity
    sentences = [
        f"Export proven in a process without Keras: on {parity.num_files} test files "
        f"{parity.label_agreement:.0%} of the labels agree, probabilities within "
        f"{parity.max_abs_difference:.1e}."
    ]
    trained = proof.ways[0]
    for way in proof.ways[1:]:
        shares = [
            f"{way.milliseconds[size] / trained.milliseconds[size]:.2f} × for {size}"
            for size in way.milliseconds
        ]
        kept = "kept" if way == proof.kept else "disagreed" if way.parity is None else "not faster"
        sentences.append(
            f"The network {way.name} in {way.precision} takes of the trained one's time "
            f"{', '.join(shares)}: {kept}."
            if shares
            else f"The network {way.name} in {way.precision} cannot be served: left out."
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


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """A share in %, its interval on the line below."""
    return f"{100 * value:.1f}\n{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"
