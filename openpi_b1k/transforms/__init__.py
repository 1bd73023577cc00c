"""What happens to a sample between disk or simulator and the model, and back. NumPy only; ordered in `pipeline.py`."""
