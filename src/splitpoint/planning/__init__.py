"""Profile × profile × link → plan.

    best_plan = plan(graph, (edge, cloud), Link(5.85, 20, 40), constraints=Constraints(deadline_ms=200))
    print(best_plan.advice, best_plan.best.label, best_plan.best.total.ms)

`planner` is the door; `plans` holds what a plan is, `files` keeps it. `constraints` are what it must keep to,
`objectives` what it minimises.

There is one cost model, for hosts (`hosts`) and the hops between them, in order. `cost_model` prices one placement, and
all topological prefixes with all codecs at once; `scoring` makes one placement a row of the table and says which
constraint rules it out; `candidates` scores the prefixes on a link. `placement_search` gives the same numbers to the
exact search over all placements (`solve`), which is between two hosts.

`choice` picks among rows. `advice` says what it comes to, or what cannot be met; `sensitivity` is the plan by
bandwidth.
"""
