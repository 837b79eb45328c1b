"""Items in, answers out, several under way: the pipeline, frames at their times, and what a stream asks of a plan."""
