"""Built-in tasks: pinned rows, the prompt, and what is measured by which margin. One file a task.

from tunetrial import tasks
task = tasks.find("newsletter")
rows = tasks.read_rows(task, "train")
tasks.render(task, rows[0])
"""

from tunetrial.tasks.newsletter import NEWSLETTER
from tunetrial.tasks.task import Task, find_in, read_rows, render
from tunetrial.tasks.tickets import TICKETS
from tunetrial.tasks.tickets_json import TICKETS_JSON

BUILT_IN: dict[str, Task] = {task.name: task for task in (NEWSLETTER, TICKETS, TICKETS_JSON)}

__all__ = ["BUILT_IN", "Task", "find", "read_rows", "render"]


def find(name: str) -> Task:
    """Return the built-in task of this name.

    Raises:
        DataError: There is none; the message lists those that there are.
    """
    return find_in(BUILT_IN, name)
