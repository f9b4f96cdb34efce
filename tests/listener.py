"""A reporter for tests that read the sentences of a run."""

from keras_transfer.reporting.reporter import SilentReporter


class Listener(SilentReporter):
    """Remembers what is said."""

    def __init__(self):
        self.said: list[str] = []

    def info(self, text: str) -> None:
        self.said.append(text)
