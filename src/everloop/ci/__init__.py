"""Continuous integration and delivery: check a change, release it, promote it, and keep a desired state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.ci.change_report import ChangeReport as ChangeReport
    from everloop.ci.checking import check_change as check_change
    from everloop.ci.deployment_environments import (
        DeploymentEnvironment as DeploymentEnvironment,
        read_environments as read_environments,
    )
    from everloop.ci.desired_state import DesiredState as DesiredState, read_state as read_state
    from everloop.ci.package_promotion import Promotion as Promotion, promote_package as promote_package
    from everloop.ci.state_apply import apply_plan as apply_plan
    from everloop.ci.state_plan import StateChange as StateChange, StatePlan as StatePlan, plan_state as plan_state
    from everloop.ci.workflow_files import workflow_text as workflow_text, write_workflow as write_workflow

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "change_report": ["ChangeReport"],
        "checking": ["check_change"],
        "desired_state": ["DesiredState", "read_state"],
        "deployment_environments": ["DeploymentEnvironment", "read_environments"],
        "package_promotion": ["Promotion", "promote_package"],
        "state_apply": ["apply_plan"],
        "state_plan": ["StateChange", "StatePlan", "plan_state"],
        "workflow_files": ["workflow_text", "write_workflow"],
    },
)
