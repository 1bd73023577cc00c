"""A small world with the R1 Pro's interface and B1K's formats, to train and test on anywhere. No simulator."""
