"""What is done to a graph before it is run, one module a pass: each takes a typed graph and returns one that computes
the same. Passes come after gradients are taken: what they leave need not be differentiable."""
