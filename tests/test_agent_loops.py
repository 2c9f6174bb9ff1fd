"""The agent loops: what the student was shown is told to the trainer, under every loop, and its sampling is seeded."""

import asyncio

import pytest
from rollout_worker import PROMPT, SEEDS, TINY, Engine, Queue, make_worker, register_loops, run_prompt
from transformers import AutoTokenizer
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.tools.function_tool import FunctionTool, OpenAIFunctionToolSchema

from srpo_recipe.training.agent_loop import SeededSingleTurnAgentLoop, SeededToolAgentLoop, TeachableLoop
from srpo_recipe.training.fields import DRAWN_FROM
from srpo_recipe.training.server import for_engine

SINGLE = ["seeded_single_turn", "single_turn_agent"]
TOOL = ["seeded_tool_agent", "tool_agent"]
SYSTEM = "Add up."
# As Llama's: it writes its part on tools wherever it is given a list, an empty one too.
TEMPLATE = (
    "{% if tools is not none %}TOOLS{% for tool in tools %} {{ tool.function.name }}{% endfor %}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAJECTORY = {"step": 5, "sample_index": 3, "rollout_n": 0, "validate": False}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'


@pytest.fixture(autouse=True)
def queue(monkeypatch):
    register_loops(monkeypatch, silent="test_agent_loops.SilentLoop", verls="test_agent_loops.VerlsLoop")
    return Queue(monkeypatch)


class SilentLoop(TeachableLoop, SingleTurnAgentLoop):
    """Renders its prompt in a way of its own."""

    stateless = True

    async def ct_build_initial_tokens(self, messages, tools=None, **kwargs):
        return [5, 6, 7]


class Thrice(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        return list(await asyncio.gather(*(super(Thrice, self).run(sampling_params, **kwargs) for _ in range(3))))


class ForkLoop(TeachableLoop, Thrice):
    """Asks the engine for its prompt three times."""


class VerlsLoop(SingleTurnAgentLoop):
    """As a user's, without the mixin."""


@pytest.fixture(scope="module")
def tokenizer():
    made = AutoTokenizer.from_pretrained(TINY)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def engine(tokenizer):
    return Engine(lambda session, request: "1+2=3#3", tokenizer)


def add(a: int, b: int) -> int:
    return a + b


@pytest.fixture
def tools():
    numbers = {name: {"type": "integer", "description": "a term"} for name in "ab"}
    parameters = {"type": "object", "properties": numbers, "required": ["a", "b"]}
    made = []
    for name in ("add", "subtract"):
        function = {"name": name, "description": "two numbers", "parameters": parameters}
        schema = OpenAIFunctionToolSchema.model_validate({"type": "function", "function": function})
        made.append(FunctionTool(name, add, schema))
    return made


def rendered(tokenizer, chat) -> list[int]:
    """The student's prompt, rendered from what its row tells."""
    return tokenizer.apply_chat_template(
        chat["messages"], tools=chat["tools"], add_generation_prompt=True, tokenize=True, return_dict=False
    )


@pytest.mark.parametrize("agent", [*SINGLE, *TOOL])
@pytest.mark.parametrize("own", [None, "Count."], ids=["bare", "with its own system turn"])
def test_the_row_tells_what_the_student_was_shown(queue, engine, tools, tokenizer, agent, own):
    turns = [*([{"role": "system", "content": own}] if own else []), *PROMPT["raw_prompt"]]

    async def run():
        worker = make_worker(engine, tools=tools)
        worker.config.srpo.system_prompt = SYSTEM
        await worker._run_prompt({**PROMPT, "raw_prompt": turns, "agent_name": agent}, {}, TRAJECTORY)

    asyncio.run(run())
    assert queue.statuses == ["running", "finished"] and len(queue.rows) == 4
    for session in range(4):
        row = queue.fields(session)
        chat = row["extra_fields"]["student_chat"]
        assert chat["messages"] == [{"role": "system", "content": own or SYSTEM}, *PROMPT["raw_prompt"]]
        assert row["prompts"].tolist() == rendered(tokenizer, chat)
        assert row["raw_prompt"] == turns, "the data's own chat stays"
        assert row["extra_fields"]["agent_loop"] == agent
        if agent in SINGLE:
            assert chat["tools"] is None
        else:
            assert [tool["function"]["name"] for tool in chat["tools"]] == ["add", "subtract"]


@pytest.mark.parametrize("shown, told", [("reference", "so 5"), ("random", None)])
def test_the_row_carries_the_datas_solution_where_the_teacher_is_shown_it(queue, engine, shown, told):
    async def run():
        worker = make_worker(engine)
        worker.config.srpo.teacher.demonstration = shown
        prompt = {**PROMPT, "extra_info": {**PROMPT["extra_info"], "reference": "so 5"}}
        await worker._run_prompt({**prompt, "agent_name": "seeded_single_turn"}, {}, TRAJECTORY)

    asyncio.run(run())
    assert [queue.fields(session)["extra_fields"].get("reference") for session in range(4)] == [told] * 4


def test_a_tool_loop_without_tools_gives_the_template_an_empty_list(queue, engine, tokenizer):
    """verl does; the template writes another prompt than for None."""
    run_prompt(engine, agent="tool_agent")
    row = queue.fields(0)
    assert row["extra_fields"]["student_chat"]["tools"] == []
    assert row["prompts"].tolist() == rendered(tokenizer, row["extra_fields"]["student_chat"])


def test_tools_that_a_row_selects_are_those_that_are_told(queue, engine, tools, tokenizer):
    selected = {"extra_info": {**PROMPT["extra_info"], "tool_selection": ["subtract"]}}
    run_prompt(engine, agent="tool_agent", tools=tools, prompt=selected)
    row = queue.fields(0)
    assert [tool["function"]["name"] for tool in row["extra_fields"]["student_chat"]["tools"]] == ["subtract"]
    assert row["prompts"].tolist() == rendered(tokenizer, row["extra_fields"]["student_chat"])


def test_every_output_of_a_rollout_tells_its_own_chat(queue, engine, tokenizer, monkeypatch):
    register_loops(monkeypatch, twice="loops_of_users.TeachableTwoTurns")
    run_prompt(engine, agent="twice", n=2)
    assert sorted(queue.rows) == ["u7_0_0", "u7_0_1", "u7_1_0", "u7_1_1"]
    for key, (row, _) in queue.rows.items():
        chat = row["extra_fields"]["student_chat"]
        assert row["prompts"].tolist() == rendered(tokenizer, chat)
        assert len(chat["messages"]) == (1 if key.endswith("_0") else 3) and "truncated" in row["extra_fields"]


def test_turns_after_the_first_are_no_part_of_the_chat(queue, tools, tokenizer):
    """The tool agent writes the call and its answer into its messages; the student's prompt had neither."""
    engine = Engine(lambda session, request: CALL if b"tool" not in _text(tokenizer, request) else "3#3", tokenizer)
    run_prompt(engine, agent="tool_agent", tools=tools, n=1, response_length=256)
    assert len(engine.requests) == 2, "the call, and the answer after the tool's"
    row = queue.fields(0)
    assert row["extra_fields"]["student_chat"]["messages"] == PROMPT["raw_prompt"]
    assert row["prompts"].tolist() == rendered(tokenizer, row["extra_fields"]["student_chat"])
    assert tokenizer.decode(row["responses"]).count("3#3") == 1 and 0 in row["response_mask"]
    first, second = (request["sampling_params"] for request in engine.requests)
    assert first["seed"] == SEEDS[0] and second["seed"] not in SEEDS, "the same noise would choose the same words again"
    assert [params[DRAWN_FROM] for params in (first, second)] == [
        len(request["prompt_ids"]) for request in engine.requests
    ]


def _text(tokenizer, request) -> bytes:
    """What the request adds to the prompt's own turns."""
    return tokenizer.decode(request["prompt_ids"]).split("assistant", 1)[1].encode()


def test_rollouts_that_overlap_keep_their_own_chats(queue, engine):
    """One instance serves all groups of a worker."""

    async def run():
        worker = make_worker(engine)
        prompts = [
            {
                **PROMPT,
                "uid": f"u{number}",
                "index": number,
                "raw_prompt": [{"role": "user", "content": f"{number}+0=?"}],
            }
            for number in range(5)
        ]
        await asyncio.gather(
            *(worker._run_prompt({**prompt, "agent_name": "seeded_single_turn"}, {}, TRAJECTORY) for prompt in prompts)
        )

    asyncio.run(run())
    assert len(queue.rows) == 20
    for key, (fields, _) in queue.rows.items():
        (turn,) = fields["extra_fields"]["student_chat"]["messages"]
        assert turn["content"] == f"{key[1]}+0=?"


@pytest.mark.parametrize("agent", ["silent", "verls"])
def test_a_loop_that_does_not_tell_is_named_in_its_rows(queue, engine, agent):
    run_prompt(engine, agent=agent)
    for session in range(4):
        extra = queue.fields(session)["extra_fields"]
        assert "student_chat" not in extra and extra["agent_loop"] == agent


@pytest.mark.parametrize("agent", [*SINGLE, *TOOL])
def test_every_rollout_has_its_seed(queue, engine, agent):
    run_prompt(engine, agent=agent)
    seeds = [request["sampling_params"]["seed"] for request in engine.requests]
    assert sorted(seeds) == sorted(SEEDS)


def test_requests_for_one_prompt_and_what_goes_on_have_seeds_of_their_own(queue, engine, monkeypatch):
    """A fork asks twice for the same; a stopped request comes to the server again, behind what it had drawn."""
    register_loops(monkeypatch, fork="test_agent_loops.ForkLoop")
    run_prompt(engine, agent="fork", n=2)
    seeds = [request["sampling_params"]["seed"] for request in engine.requests]
    assert len(set(seeds)) == 6 and set(SEEDS[:2]) <= set(seeds)
    again = Engine(engine.answer, engine.tokenizer)
    run_prompt(again, agent="fork", n=2)
    assert sorted(request["sampling_params"]["seed"] for request in again.requests) == sorted(seeds)
    params = {"temperature": 1.0, "seed": SEEDS[0], DRAWN_FROM: 5}
    given = [for_engine(params, tokens) for tokens in (5, 6, 7)]
    assert given[0] == {"temperature": 1.0, "seed": SEEDS[0]} and DRAWN_FROM in params
    assert len({one["seed"] for one in given}) == 3 and not any(DRAWN_FROM in one for one in given)
    assert for_engine({"temperature": 0.0}, 9) == {"temperature": 0.0}


def test_a_prompt_that_the_system_prompt_makes_too_long_is_lost_and_not_cut(queue, engine, caplog):
    """verl's filter of long rows knows nothing of it, and verl cuts from the left."""
    for truncation, rows in (("error", 0), ("left", 4)):

        async def run(truncation=truncation):
            worker = make_worker(engine, prompt_length=16)
            worker.config.srpo.system_prompt = "Add up the numbers. " * 4
            worker.config.data.truncation = truncation
            await worker._run_prompt({**PROMPT, "agent_name": "seeded_single_turn"}, {}, TRAJECTORY)

        asyncio.run(run())
        assert len(queue.rows) == rows
    assert "more than data.max_prompt_length=16: raise that, shorten srpo.system_prompt" in caplog.text


@pytest.mark.parametrize("agent", ["seeded_single_turn", "seeded_tool_agent"])
def test_a_response_that_the_limit_cut_is_marked(queue, tokenizer, agent):
    whole = tokenizer.encode("3#3", add_special_tokens=False)
    cut, ended = whole, [*whole[:-1], tokenizer.eos_token_id]
    engine = Engine(lambda session, _: [cut, ended, whole[:1], [*whole, 5]][session], tokenizer)
    run_prompt(engine, agent=agent, response_length=3)
    marks = [queue.fields(session)["extra_fields"]["truncated"] for session in range(4)]
    assert marks == [True, False, False, True]


def test_only_the_single_turn_loop_is_shared():
    assert SeededSingleTurnAgentLoop.stateless and not hasattr(SeededToolAgentLoop, "stateless")
