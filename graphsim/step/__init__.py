"""From a forward graph to one training step: op lowering, backward, optimizer, precision."""
