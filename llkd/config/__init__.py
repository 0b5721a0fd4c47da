"""Every setting of a run, validated when it is read.

The sections that engines and policies of your own are made with can be imported from here.
"""

from llkd.config.run import Example, RunConfig, TaskConfig, TeacherConfig

__all__ = ["Example", "RunConfig", "TaskConfig", "TeacherConfig"]
