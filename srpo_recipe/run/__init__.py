"""What a user sees of a run: the step line, metrics of the routing, summary, comparison; stopping, joining a cluster."""
