"""From a checkpoint directory to actions."""
