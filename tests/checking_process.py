"""The script of isolated processes, without TensorFlow's graph optimizer; see conftest.py.

Run by path like that script, with the same arguments: the blocked packages.
"""

import gc
import runpy
import sys
from pathlib import Path

sys.modules.update(dict.fromkeys(sys.argv[1:]))  # None: they cannot be imported.
gc.disable()  # As that script does: what imports create stays.
import tensorflow as tf

gc.enable()
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
script = Path(__file__).parents[1] / "keras_transfer" / "export" / "isolated_script.py"
runpy.run_path(str(script), run_name="__main__")
