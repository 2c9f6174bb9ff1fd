"""Float64 numpy transcriptions of the paper's equations, written without looking at the torch code they judge."""
