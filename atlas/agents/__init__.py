"""Agents: specialised workers with tools, and controllers that delegate tasks to them.

All of it inherits the log: inside ``async with app.recording()`` a team can be watched live, replayed
offline, forked, and resumed after its process was killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas._exports import exported

if TYPE_CHECKING:
    from atlas.agents.account import Account as Account
    from atlas.agents.account import Price as Price
    from atlas.agents.agent import Agent as Agent
    from atlas.agents.agent import History as History
    from atlas.agents.agent import Memory as Memory
    from atlas.agents.approval import approve as approve
    from atlas.agents.approval import pending_approvals as pending_approvals
    from atlas.agents.controller import Controller as Controller
    from atlas.agents.controller import ErrorPolicy as ErrorPolicy
    from atlas.agents.desk import current_desk as current_desk
    from atlas.agents.diagram import sequence_diagram as sequence_diagram
    from atlas.agents.diagram import task_tree as task_tree
    from atlas.agents.messages import AgentMessage as AgentMessage
    from atlas.agents.messages import ApprovalAsked as ApprovalAsked
    from atlas.agents.messages import ApprovalGiven as ApprovalGiven
    from atlas.agents.messages import Limits as Limits
    from atlas.agents.messages import Spent as Spent
    from atlas.agents.messages import Task as Task
    from atlas.agents.outcome import Outcome as Outcome
    from atlas.agents.outcome import checked_transition as checked_transition
    from atlas.agents.post import PostOffice as PostOffice
    from atlas.agents.specialised import delegation as delegation
    from atlas.agents.specialised import hand_over_to as hand_over_to
    from atlas.agents.specialised import knowledge_agent as knowledge_agent
    from atlas.agents.specialised import report_progress as report_progress
    from atlas.agents.specialised import scripted_agent as scripted_agent
    from atlas.agents.specialised import task_aware as task_aware
    from atlas.agents.state import AgentsState as AgentsState
    from atlas.agents.state import AgentState as AgentState
    from atlas.agents.state import TaskState as TaskState
    from atlas.agents.state import agents_at as agents_at
    from atlas.agents.state import project_agents as project_agents
    from atlas.agents.tools import Tool as Tool
    from atlas.agents.tools import tool as tool

__getattr__, __dir__ = exported(
    __name__,
    {
        "atlas.agents.account": (
            "Account",
            "Price",
        ),
        "atlas.agents.agent": (
            "Agent",
            "History",
            "Memory",
        ),
        "atlas.agents.approval": (
            "approve",
            "pending_approvals",
        ),
        "atlas.agents.controller": (
            "Controller",
            "ErrorPolicy",
        ),
        "atlas.agents.desk": ("current_desk",),
        "atlas.agents.diagram": (
            "sequence_diagram",
            "task_tree",
        ),
        "atlas.agents.messages": (
            "AgentMessage",
            "ApprovalAsked",
            "ApprovalGiven",
            "Limits",
            "Spent",
            "Task",
        ),
        "atlas.agents.outcome": (
            "Outcome",
            "checked_transition",
        ),
        "atlas.agents.post": ("PostOffice",),
        "atlas.agents.specialised": (
            "delegation",
            "hand_over_to",
            "knowledge_agent",
            "report_progress",
            "scripted_agent",
            "task_aware",
        ),
        "atlas.agents.state": (
            "AgentState",
            "AgentsState",
            "TaskState",
            "agents_at",
            "project_agents",
        ),
        "atlas.agents.tools": (
            "Tool",
            "tool",
        ),
    },
)

__all__ = [
    "Account",
    "Agent",
    "AgentMessage",
    "AgentState",
    "AgentsState",
    "ApprovalAsked",
    "ApprovalGiven",
    "Controller",
    "ErrorPolicy",
    "History",
    "Limits",
    "Memory",
    "Outcome",
    "PostOffice",
    "Price",
    "Spent",
    "Task",
    "TaskState",
    "Tool",
    "agents_at",
    "approve",
    "checked_transition",
    "current_desk",
    "delegation",
    "hand_over_to",
    "knowledge_agent",
    "pending_approvals",
    "project_agents",
    "report_progress",
    "scripted_agent",
    "sequence_diagram",
    "task_aware",
    "task_tree",
    "tool",
]
