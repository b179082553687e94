"""Training on a cluster: data, the Trainer, devices of one worker, and what ties the graph engine to a store."""
