"""What of a scheduled program's temporaries lies in the device's memory at once."""

import collections
import re

from ._program_text import Instruction, arrays

Buffer = tuple[str, int]  # of which instruction, and which of its arrays


def live_bytes(instructions: list[Instruction]) -> int:
    """The most bytes of temporaries at any moment of a computation, in its order.

    Arguments, results and what lies on the chip are left out. Loops and calls count
    with what they hand on: what only they hold is not known here.
    """
    buffers: dict[str, list[Buffer]] = {}
    num_bytes: dict[Buffer, int] = {}
    born: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    results: set[Buffer] = set()
    for moment, instruction in enumerate(instructions):
        read = [b for name in instruction.operands for b in buffers.get(name, [])]
        last.update(dict.fromkeys(read, moment))
        if instruction.op == "parameter":
            mine = []
        elif instruction.op in ("bitcast", "tuple"):
            mine = read
        elif instruction.op.endswith("-done"):
            mine = read[:1]
        elif instruction.op == "get-tuple-element":
            index = re.search(r"index=(\d+)", instruction.rest)
            mine = read[int(index[1]) :][:1] if index else []
        else:
            mine = _new(instruction, num_bytes)
            born.update(dict.fromkeys(mine, moment))
            last.update(dict.fromkeys(mine, moment))
        buffers[instruction.name] = mine
        if instruction.is_root:
            results = set(mine)
    ending: dict[int, int] = collections.defaultdict(int)
    beginning: dict[int, int] = collections.defaultdict(int)
    for buffer in born.keys() - results:
        beginning[born[buffer]] += num_bytes[buffer]
        ending[last[buffer]] += num_bytes[buffer]
    most = now = 0
    for moment in range(len(instructions)):
        now += beginning[moment]
        most = max(most, now)
        now -= ending[moment]
    return most


def _new(instruction: Instruction, num_bytes: dict[Buffer, int]) -> list[Buffer]:
    """The arrays that an instruction makes, those that are copied to among them."""
    mine = []
    for i, (size, is_on_chip) in enumerate(arrays(instruction.shape)):
        if instruction.op.endswith("-start") and i == 1:
            continue  # what is copied from
        buffer = (instruction.name, i)
        num_bytes[buffer] = 0 if is_on_chip else size
        mine.append(buffer)
    return mine
