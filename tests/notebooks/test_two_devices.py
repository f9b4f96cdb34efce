"""The notebooks for accelerators, on two virtual devices of this processor."""

import pytest
from jax_processes import JAX, TWO_DEVICES
from running_notebooks import SMALL, check_course, execute, words

TWO_PROCESSORS = """
import tensorflow as tf

processor = tf.config.list_physical_devices("CPU")[0]
halves = [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()]
tf.config.set_logical_device_configuration(processor, halves)
"""


@pytest.mark.slow
def test_the_gpu_notebook_shares_batches_among_mirrors(tmp_path):
    notebook = execute(
        "colab_gpu",
        tmp_path,
        before=TWO_PROCESSORS,
        CHANGES=SMALL,
        STRATEGY="mirrored",
        TRIALS=1,
    )
    check_course(notebook, tmp_path, num_trials=1)
    assert "TensorFlow computes on 2 CPUs" in words(notebook, "train")
    assert "(mirrored)" in words(notebook, "train")


@pytest.mark.slow
def test_the_tpu_notebook_shares_batches_on_jax(tmp_path):
    notebook = execute(
        "colab_tpu",
        tmp_path,
        environment=JAX | TWO_DEVICES,
        CHANGES=SMALL,
        TRIALS=1,
    )
    check_course(notebook, tmp_path, num_trials=1)
    assert words(notebook, "devices") == "[CpuDevice(id=0), CpuDevice(id=1)]"
    assert "JAX computes on 2 CPUs" in words(notebook, "train")
    assert "(data_parallel)" in words(notebook, "train")
