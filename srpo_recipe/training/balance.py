"""Which rank does what: equal work for every data-parallel rank, in the update and in the self-teacher's pass."""

from collections.abc import Sequence

from srpo_recipe.method.decision import Decision


def deal(teacher_length_B: Sequence[int], length_B: Sequence[int], ranks: int) -> list[list[int]]:
    """Rows of a batch in equal shares, of which every rank's holds as many routed rows, give or take one.

    The ranks wait for each other in every pass, so the teacher's work and the student's have to be level each on its own. Routed
    rows come first, longest first, and are dealt there and back; the others go on from there.

    teacher_length_B: tokens of a row's teacher sequence, 0 for rows that the teacher does not see; length_B: tokens of the row
    itself. Raises ValueError when the rows do not divide by the ranks.
    """
    if len(length_B) % ranks:
        raise ValueError(f"{len(length_B)} rows cannot be dealt to {ranks} ranks in equal shares")
    order = sorted(range(len(length_B)), key=lambda row: (-teacher_length_B[row], -length_B[row], row))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for place, row in enumerate(order):
        turn, seat = divmod(place, ranks)
        shares[seat if turn % 2 == 0 else ranks - 1 - seat].append(row)
    return shares


def by_rank(rows: Sequence[int], total: int, ranks: int) -> list[list[int | None]]:
    """Places in `rows` by the rank that will update them, which is where the teacher's states must stay. None pads."""
    shares: list[list[int | None]] = [[] for _ in range(ranks)]
    for place, row in enumerate(rows):
        shares[row * ranks // total].append(place)
    longest = max(map(len, shares))
    return [share + [None] * (longest - len(share)) for share in shares]


def teacher_order(decision: Decision, length_B: Sequence[int], ranks: int) -> tuple[list[int], list[list[int]]]:
    """`deal` for a decision: (the rows in their new order, the shares of the ranks). length_B: tokens of the student's rows."""
    response_B = decision.rollouts.length_B.tolist()
    prompts = decision.prompts
    teacher_B = [len(prompts[row].ids) + length if row in prompts else 0 for row, length in enumerate(response_B)]
    shares = deal(teacher_B, length_B, ranks)
    return [row for share in shares for row in share], shares
