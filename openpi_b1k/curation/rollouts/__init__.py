"""Rollouts of a policy become a data set to train on."""
