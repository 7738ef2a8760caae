"""Built-in tasks: pinned rows, the prompt, and what is measured by which margin. One file a task.

from tunetrial import tasks
task = tasks.find("newsletter")
rows = tasks.read_rows(task, "train")
tasks.render(task, rows[0])
"""

from tunetrial.core.errors import DataError
from tunetrial.tasks.newsletter import NEWSLETTER
from tunetrial.tasks.task import Task, read_rows, render
from tunetrial.tasks.tickets import TICKETS
from tunetrial.tasks.tickets_json import TICKETS_JSON

BUILT_IN: dict[str, Task] = {task.name: task for task in (NEWSLETTER, TICKETS, TICKETS_JSON)}

__all__ = ["BUILT_IN", "Task", "find", "read_rows", "render"]


def find(name: str) -> Task:
    """Return the built-in task of this name.

    Raises:
        DataError: There is none; the message lists those that there are.
    """
    if name not in BUILT_IN:
        raise DataError(f"task: unknown, got {name!r}; use one of {', '.join(BUILT_IN)}")
    return BUILT_IN[name]
