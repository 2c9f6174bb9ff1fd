"""What a command line asks to prepare: the format of its rows, the files that hold them, their checks."""

import argparse
from pathlib import Path

from srpo_recipe.data.checks import token_counter, tokenizer_identity
from srpo_recipe.data.formats import Columns, Converter, MathProblems, Published, SciKnowEval, Verl
from srpo_recipe.data.prepare import Request
from srpo_recipe.data.problems import Refused
from srpo_recipe.data.sources import SPLIT_SEED, TEST_SHARE, belonging, divide, fetch, locate, rows_of
from srpo_recipe.data.tasks import TASKS, Task
from srpo_recipe.verify import BENCHMARKS

FORMATS = ("published", "hub", "verl", "columns")
MAPPED = ("prompt", "answer", "id", "system", "reference")


def request_of(args: argparse.Namespace) -> Request:
    """What the command line asks for. Raises Refused for what does not fit together, and for files that are not there."""
    task = TASKS.get(args.task)
    if not task and not args.verifier:
        raise Refused(
            f"task {args.task!r} is unknown; choose one of {', '.join(TASKS)}, or name a --verifier for your own"
        )
    if args.source == "hub" and not (task and task.hub):
        named = ", ".join(name for name, one in TASKS.items() if one.hub)
        raise Refused(f"{args.task} is not on the hub (these are: {named}); give its files: --source PATH")
    kind = args.format or _usual_format(task, args)
    converter = _converter(kind, task, args)
    request = Request(
        args.task,
        args.verifier or BENCHMARKS[args.task],
        converter,
        rows={},
        gold_template=args.gold_response,
        limit=args.max_prompt_tokens,
        skip_bad=args.skip_bad,
    )
    if task:
        request.ability, request.licence = task.ability, task.licence
        request.origin["url"] = task.origin
    request.origin["format"] = kind
    _open(request, task, args)
    if args.tokenizer:
        request.tokens, request.tokenizer = token_counter(args.tokenizer), tokenizer_identity(args.tokenizer)
    return request


def _usual_format(task: Task | None, args: argparse.Namespace) -> str:
    if args.map or args.template or not task:
        return "columns"
    if args.source == "hub":
        return "hub"
    return "published" if task.folder else "hub" if task.hub else "verl"


def _converter(kind: str, task: Task | None, args: argparse.Namespace) -> Converter:
    if kind != "columns" and (args.map or args.template or args.system):
        raise Refused(f"--map, --template and --system are for --format columns, not {kind}")
    if kind == "verl":
        return Verl()
    if kind == "columns":
        mapping = {"prompt": "prompt", "answer": "answer"}
        for pair in args.map:
            key, equals, column = pair.partition("=")
            if key not in MAPPED or not equals or not column:
                raise Refused(f"--map {pair!r}: expected KEY=COLUMN with KEY one of {', '.join(MAPPED)}")
            mapping[key] = column
        return Columns(mapping, args.system, args.template or Columns.template)
    if kind == "published" and task and task.kind:
        return Published(task.kind)
    if kind == "hub" and task and task.hub:
        return SciKnowEval(task.hub.domain) if task.hub.domain else MathProblems(task.hub)
    raise Refused(f"{args.task} has no rows of format {kind}")


def _open(request: Request, task: Task | None, args: argparse.Namespace) -> None:
    """Fill in the rows of each split, and where they are from. SciKnowEval's file is filtered and split as published."""
    unsplit = isinstance(request.converter, SciKnowEval | MathProblems)
    if args.test_share is not None and (unsplit or not 0.0 < args.test_share < 1.0):
        raise Refused("--test-share is a share between 0 and 1, for files of your own")
    if args.source == "hub":
        assert task and task.hub
        path, commit = fetch(task.hub, args.revision)
        request.origin |= {"repository": task.hub.repository, "revision": commit}
    elif unsplit or args.test_share is not None:
        path = Path(args.source)
        if not path.is_file():
            raise Refused(f"{path} is no file; here --source is the one file that holds all rows")
    else:
        files = locate(args.source, task, args.split)
        request.rows = {split: (file, rows_of(file)) for split, file in files.items()}
        return
    if isinstance(request.converter, MathProblems):
        request.rows = {"test": (path, rows_of(path))}
        return
    share, seed = args.test_share, args.split_seed
    rows = rows_of(path)
    if isinstance(request.converter, SciKnowEval):
        share, seed = TEST_SHARE, SPLIT_SEED
        rows = belonging(rows, request.converter)
    request.origin |= {"test_share": share, "split_seed": seed}
    request.rows = {split: (path, entries) for split, entries in divide(rows, share, seed).items()}
