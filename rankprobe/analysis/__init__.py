"""What a pair of weights or a run says about rank, as DataFrames."""
