"""Profile × profile × link → plan.

`plan` is the door; `problem` turns profiles into numbers, `latency` finds the least sum exactly (a minimum cut),
`throughput` the least slowest stage with a proven gap, `values` holds what a plan is.
"""
