"""Every setting of a run, validated when it is read.

Custom engines and policies import the sections they are constructed with from here.
"""

from llkd.config.run import Example, RunConfig, TaskConfig, TeacherConfig

__all__ = ["Example", "RunConfig", "TaskConfig", "TeacherConfig"]
