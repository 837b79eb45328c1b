"""Profile × profile × link → plan.

    best_plan = plan(graph, (edge, cloud), Link(5.85, 20, 40), constraints=Constraints(deadline_ms=200))
    print(best_plan.advice, best_plan.best.label, best_plan.best.total.ms)

`planner` is the door; `plans` holds what a plan is, `files` keeps it. `constraints` are what it must keep to,
`objectives` what it minimises. `cost_model` turns profiles into the numbers of a `solve.problem`, which `solve` finds
the best placement of. `candidates` has every topological prefix with every codec as arrays; `scoring` prices one
placement by the full model, error bars included, and says what rules it out. `advice`, `sensitivity` and `infeasible`
say what it comes to: one sentence, the plan by bandwidth, and what cannot be met.

An objective is a row of weights (`objectives.weights_of`) and its unit (`plans.value`); a constraint is a field of
`Constraints`, a mask over the candidates (`Planner._kept`) and a reason (`Scorer._refused`).
"""
