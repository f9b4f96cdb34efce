"""Several processes and machines: features and predictions with Ray, and hosts of one training."""
