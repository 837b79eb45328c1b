"""When to cut elsewhere, and doing it: `controller` watches an edge and acts, everything else here is pure.

What requests show becomes `conditions`; `option_costs` are what each option costs under them; `switch_policy` decides;
`prewarm` says which cuts are kept ready; `probe_schedule` when an idle link is looked at; `switch_log`
what a switch cost.
"""
