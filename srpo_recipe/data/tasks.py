"""What can be prepared by name: where a set comes from, under which licence it is. verify.BENCHMARKS says who judges it."""

from dataclasses import dataclass, field

SPLITS = ("train", "test")

# The user turn of the mathematics sets: the problem as it stands, then where the answer goes.
MATH_TEMPLATE = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Hub:
    """A file of a dataset repository on the Hugging Face hub.

    repository, revision, file: what is fetched; a revision is a full commit, since a branch moves. domain: of
    SciKnowEval, whose rows are filtered and split; otherwise problem, answer, id name the columns of an evaluation set
    (id None: the rows are counted).
    """

    repository: str
    revision: str
    file: str
    domain: str | None = None
    problem: str = "problem"
    answer: str = "answer"
    id: str | None = None


@dataclass(frozen=True)
class Task:
    """One row of TASKS.

    ability: verl's column of that name. licence, origin: of the data. rows: the size of each published split. hub: None
    where only split files are published. folder: where its split files lie below the root of the published ones, and kind:
    what their rows call themselves (None: there are none).
    """

    ability: str
    licence: str
    origin: str
    rows: dict[str, int] = field(default_factory=dict)
    hub: Hub | None = None
    folder: str | None = None
    kind: str | None = None


def _sciknoweval(domain: str, train: int, test: int) -> Task:
    return Task(
        ability="science",
        licence="MIT",
        origin="https://huggingface.co/datasets/hicai-zju/SciKnowEval",
        rows={"train": train, "test": test},
        hub=Hub(
            "hicai-zju/SciKnowEval",
            "92ef969ad0a8bd6e195e0ac18af2c46e307e0cc2",
            "data/v2/sciknoweval_test_v2.jsonl",
            domain=domain,
        ),
        folder=f"sciknoweval/{domain.lower()}",
        kind="mcq",
    )


def _math(licence: str, rows: int, hub: Hub) -> Task:
    origin = f"https://huggingface.co/datasets/{hub.repository}"
    return Task("math", licence, origin, rows={"test": rows}, hub=hub)


TASKS: dict[str, Task] = {
    "chemistry": _sciknoweval("Chemistry", 1890, 210),
    "physics": _sciknoweval("Physics", 720, 80),
    "biology": _sciknoweval("Biology", 450, 50),
    "material": _sciknoweval("Material", 841, 94),
    "tooluse": Task(
        ability="tool_use",
        licence="Apache-2.0 (ToolAlpaca)",
        origin="https://github.com/tangqiaoyu/ToolAlpaca",
        rows={"train": 4046, "test": 68},
        folder="tooluse",
        kind="tooluse",
    ),
    # Training: any set in verl's own format (for example DAPO-Math-17k or MATH).
    "math": Task("math", licence="that of the set", origin="a set of the user's"),
    "aime24": _math(
        "Apache-2.0",
        30,
        Hub(
            "math-ai/aime24",
            "83a7f387baaa524a8bda0022eac0541582297103",
            "test-00000-of-00001.parquet",
            answer="solution",
            id="id",
        ),
    ),
    "aime25": _math(
        "Apache-2.0",
        30,
        Hub("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test.jsonl", id="id"),
    ),
    "hmmt25": _math(
        "CC BY-NC-SA 4.0",
        30,
        Hub(
            "MathArena/hmmt_feb_2025",
            "6fdc4277120810ff75aa22d2d5489b91f7a262a1",
            "data/train-00000-of-00001.parquet",
            id="problem_idx",
        ),
    ),
    "olympiadbench": _math(
        "Apache-2.0",
        674,
        Hub(
            "Hothan/OlympiadBench",
            "91184b52131e7fc9455fef848035173aea8cc01a",
            "OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet",
            problem="question",
            answer="final_answer",
            id="id",
        ),
    ),
    "minerva": _math(
        "not stated; ask its authors",
        272,
        Hub("math-ai/minervamath", "ee46ddc498933b1977577953250ca5c66be64f96", "test.jsonl", problem="question"),
    ),
}
