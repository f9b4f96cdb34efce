"""Writing a SavedModel: signatures, contract and aliases, complete or not at all."""

from pathlib import Path
from typing import Final

import tensorflow as tf

from keras_transfer.delivery.atomic import replacing
from keras_transfer.delivery.contract import Contract
from keras_transfer.delivery.saved_model.network import Network
from keras_transfer.delivery.saved_model.signatures import ACCELERATOR_ALIAS, Signatures
from keras_transfer.errors import ExportError

MODEL_FILE: Final = "saved_model.pb"


def export_saved_model(network: Network, folder: Path, contract: Contract) -> None:
    """Write a SavedModel with its contract beside it; see `signatures` for what it answers to.

    The folder appears complete or not at all. To let it appear only once it is proven, export into
    `with replacing(folder) as path` and call `parity.check_parity(path, …)` inside the block.

    Args:
        network: from `network.as_trained` or `network.frozen`.
        folder: an earlier export there is replaced.

    Raises:
        ExportError: the folder holds other things, or a class name does not fit into labels.txt.
        RunError: the disk is full, or the folder cannot be written.
    """
    _check_replaceable(folder)
    # A plain module over the weights: `Model.export` and tracked archives write each weight twice.
    module = Signatures(network, contract)
    signatures = module.concrete()
    options = tf.saved_model.SaveOptions(function_aliases={ACCELERATOR_ALIAS: module.classify})
    with replacing(folder) as path:
        tf.saved_model.save(module, str(path), signatures=signatures, options=options)
        contract.write(path)


def _check_replaceable(folder: Path) -> None:
    is_export = (folder / MODEL_FILE).is_file()
    if folder.is_dir() and not is_export and any(folder.iterdir()):
        raise ExportError(
            f"{folder} holds other files than an exported model's",
            expected="a new or empty folder, or an earlier export",
            received=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]),
            fix="give another folder",
        )
