"""The pipeline as a KerasTuner `HyperModel`, for tuners of KerasTuner and your own."""

from keras_transfer.experiments.tune.hypermodel import TransferHyperModel

__all__ = ["TransferHyperModel"]
