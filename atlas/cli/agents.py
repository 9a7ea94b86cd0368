"""``atlas agents``: who works on what in a run, live or afterwards, and what waits for a person."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Mapping

import click

from atlas.agents.approval import answer_in, approvals_in, keep_answer, refuse_unasked
from atlas.agents.diagram import sequence_diagram, task_tree
from atlas.agents.messages import ApprovalAsked, ApprovalGiven
from atlas.agents.state import agents_at, events_at
from atlas.cli.options import db_option, json_option
from atlas.cli.runs import opened, told
from atlas.cli.trees import tree_lines
from atlas.core.log.engine import Engine
from atlas.core.messages import Message
from atlas.core.runs import Run, RunEnded, Runs
from atlas.core.schema.codec import dump, encode
from atlas.errors import AtlasError, UnknownApprovalError
from atlas.providers.chat_state import ChatState
from atlas.typing import JSON

_PATIENCE = 0.5
_LONGEST = 160
"""So many characters of what an event says are shown."""


@click.group()
def agents() -> None:
    """Look at what agents do in a run, and decide on what waits; every command takes --json."""


def _found(known: Runs[ChatState], run: str | None) -> Run[ChatState]:
    return known.latest() if run is None else known[run]


def _head(run: Run[ChatState], moment: str = "") -> str:
    """Say which run it is, and how it is with it: agents of a dead process look busy for ever."""
    status: str = run.status
    if status == "unfinished":
        status += f": it goes on, or its process died and `atlas resume {run.id}` goes on with it"
    return f"{click.style(run.id, bold=True)}  {status}{moment}"


@agents.command("list", short_help="List the agents of a run.")
@click.argument("run", required=False)
@db_option
@json_option
def list_(*, run: str | None, db: str, as_json: bool) -> None:
    """List the agents of RUN (default: the latest): health, tasks, turns."""
    with opened(db) as (_, known):
        found = _found(known, run)
        state, head = agents_at(found), _head(found)
    listed = [dump(each) for each in state.agents.values()]
    if as_json:
        told({"run": found.id, "agents": listed})
        return
    if not listed:
        click.echo(f"No agent works in {found.id}.")
        return
    click.echo(head)
    width = max(len(name) for name in state.agents)
    for name, agent in sorted(state.agents.items()):
        click.echo(
            f"{name:<{width}}  {agent.health:<6} {len(agent.tasks):>3} at work  {agent.done:>4} done"
            f"  {agent.failed:>3} failed  {agent.turns:>5} turns"
        )


@agents.command(short_help="Show the tasks of a run as a tree.")
@click.argument("run", required=False)
@db_option
@click.option("--at", "number", type=int, help="As it was after this event; -1: the last.")
@json_option
def tree(*, run: str | None, db: str, number: int | None, as_json: bool) -> None:
    """Show the tasks of RUN (default: the latest) as a tree, with their tools."""
    with opened(db) as (_, known):
        found = _found(known, run)
        events = events_at(found, number)
        state = agents_at(found, number)
        head = _head(found, "" if number is None else f", here after event {number}")
    if as_json:
        tasks = [dump(task) for task in state.tasks.values()]
        told({"run": found.id, "at": number, "tasks": tasks})
        return
    click.echo(head)
    for line in task_tree(events) or ["No task was given to an agent."]:
        click.echo(line)


@agents.command(short_help="Print what happens in a run.")
@click.argument("run", required=False)
@db_option
@json_option
def tail(*, run: str | None, db: str, as_json: bool) -> None:
    """Print what happens in RUN (default: the latest) as it is stored, until it ends."""
    with opened(db) as (engine, known):
        found = _found(known, run)
        for event in _followed(engine, found):
            if as_json:
                click.echo(encode(event))
            elif event.message_name.startswith(("task.", "agent.", "tool.", "approval.", "run.")):
                click.echo(next(tree_lines([event], numbers=False)) + _facts(event))


def _followed(engine: Engine, run: Run[ChatState]) -> Iterator[Message]:
    """Yield the events of a run, those to come too, up to its end."""
    seen = 0
    is_told = False
    while True:
        position = engine.last_position() or 0
        for event in run.read(seen):
            seen += 1
            yield event
            if isinstance(event, RunEnded):
                return
        if not is_told:
            click.echo("(It has not ended. Waiting for more; Ctrl-C stops.)", err=True)
            is_told = True
        engine.wait_beyond(position, _PATIENCE)


def _facts(event: Message) -> str:
    told = json.dumps(_said(dump(event)), ensure_ascii=False)
    return f"  {told if len(told) <= _LONGEST else told[: _LONGEST - 1] + '…'}"


def _said(facts: JSON) -> JSON:
    """Return facts without those that say nothing, at any depth."""
    if not isinstance(facts, dict):
        return facts
    said = {name: _said(fact) for name, fact in facts.items()}
    return {name: fact for name, fact in said.items() if fact not in (None, "", {}, [])}


@agents.command(short_help="Draw a run in Mermaid.")
@click.argument("run", required=False)
@db_option
@json_option
def diagram(*, run: str | None, db: str, as_json: bool) -> None:
    """Write what happened in RUN (default: the latest) as a Mermaid sequence diagram."""
    with opened(db) as (_, known):
        found = _found(known, run)
        text = sequence_diagram(found.held())
    if as_json:
        told({"run": found.id, "mermaid": text})
    else:
        click.echo(text, nl=False)


@agents.command(short_help="List what waits for a person.")
@db_option
@json_option
def approvals(*, db: str, as_json: bool) -> None:
    """List the tool calls that wait for a person, in all runs that have not ended.

    Exits with 1 when a run is damaged, so that nobody knows what waits in it.
    """
    with opened(db) as (engine, known):
        asked_for, damaged = approvals_in(known)
        waiting = [
            (name, asked) for name, asked in asked_for if answer_in(engine, asked.approval) is None
        ]
    _tell_damaged(damaged)
    if as_json:
        told([{"run": name, **dump(asked)} for name, asked in waiting])
    else:
        _list(waiting)
    click.get_current_context().exit(1 if damaged else 0)


def _list(waiting: list[tuple[str, ApprovalAsked]]) -> None:
    for name, asked in waiting:
        who = asked.agent or "in doubt"  # it was begun before a crash, and no agent's tool
        click.echo(f"{asked.approval}  {who}: {asked.tool}({asked.arguments})  in {name}")
    if not waiting:
        click.echo("Nothing waits for a person.")


def _tell_damaged(damaged: Mapping[str, AtlasError]) -> None:
    for name, error in damaged.items():
        click.secho(f"{name} is damaged: {error}", fg="red", err=True)


@agents.command(short_help="Let a tool call run, or refuse it.")
@click.argument("approval")
@db_option
@click.option("--refuse", is_flag=True, help="Say no.")
@click.option("--by", help="Who decides.  [default: the user]")
@click.option("--reason", default="", help="Why; the model is told of a refusal.")
@json_option
def approve(
    *, approval: str, db: str, refuse: bool, by: str | None, reason: str, as_json: bool
) -> None:
    """Let the tool call APPROVAL run, or refuse it; the first decision holds."""
    given = ApprovalGiven(approval, not refuse, by or getpass.getuser(), reason)
    with opened(db, writable=True) as (engine, known):
        if answer_in(engine, approval) is None:
            _expect_asked(known, approval)
        keep_answer(engine, approval, json.dumps(dump(given)))
        holds = json.loads(answer_in(engine, approval) or "{}")
    if as_json:
        told(holds)
    else:
        word = "may run" if holds["approved"] else "is refused"
        click.echo(f"{approval} {word}, says {holds['by']}.")


def _expect_asked(known: Runs[ChatState], approval: str) -> None:
    """Refuse to decide what no run that goes on has asked: it is a slip of the pen."""
    asked_for, damaged = approvals_in(known)
    try:
        refuse_unasked(
            approval,
            (asked.approval for _, asked in asked_for),
            "`atlas agents approvals` lists what does.",
        )
    except UnknownApprovalError as error:
        _tell_damaged(damaged)
        raise click.UsageError(str(error)) from error
