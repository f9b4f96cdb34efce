"""Variables of processes whose Keras computes on JAX."""

QUICK_COMPILER = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Flags of XLA, which otherwise compiles for seconds what a test runs for milliseconds."""

JAX = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_COMPILER}

TWO_DEVICES = {"XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {QUICK_COMPILER}"}
"""Two virtual devices of this processor, after `JAX`."""
