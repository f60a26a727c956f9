"""Run inside gdb: what the convenience functions give for each task and CPU of KD_WANTED, as JSON.

The types of their values are used from Python: in an expression gdb looks for a symbol of each member's name,
which takes 20 s.
"""

from __future__ import annotations

import json
import os

import gdb

with open(os.environ["KD_WANTED"]) as file:
    wanted = json.load(file)


def evaluated(expression: str) -> gdb.Value:
    return gdb.parse_and_eval(expression)


tasks = {}
for lwp in wanted["tasks"]:
    node = evaluated(f"$kd_task({lwp})")["tasks"].address
    gdb.set_convenience_variable("kd_node", node)
    task = evaluated('$kd_container_of($kd_node, "struct task_struct", "tasks")')
    tasks[lwp] = [hex(int(task)), int(task["pid"]), str(task.type)]
answer = {
    "tasks": tasks,
    "current": {cpu: int(evaluated(f"$kd_current({cpu})")["pid"]) for cpu in wanted["cpus"]},
    "percpu": {cpu: hex(int(evaluated(f'$kd_percpu("runqueues", {cpu})'))) for cpu in wanted["cpus"]},
}
with open(os.environ["KD_ANSWER"], "w") as file:
    json.dump(answer, file)
