"""Loops and memory traffic in the HLO text of compiled programs."""

import pytest

from jaxopt_tf.planning._hlo import Program

# A loop as the compiler for TPUs writes it, without the number of iterations. Its
# counter starts at 0 and increases by `step`. The body selects one of four layers from
# a stack, and writes its result into one of four parts of another stack.
LOOP = """HloModule jit_step

%select (p.0: f32[4,8,8], p.1: f32[8,8], p.2: f32[4,8,8], p.3: u32[]) -> f32[4,8,8] {{
  %p.0 = f32[4,8,8]{{2,1,0}} parameter(0)
  %p.1 = f32[8,8]{{1,0}} parameter(1)
  %p.2 = f32[4,8,8]{{2,1,0}} parameter(2)
  %p.3 = u32[] parameter(3)
  %zero = u32[] constant(0)
  %slice = f32[1,8,8]{{2,1,0}} dynamic-slice(%p.0, %p.3, %zero, %zero)
  %layer = f32[8,8]{{1,0}} bitcast(%slice)
  %sum = f32[8,8]{{1,0}} add(%layer, %p.1)
  %part = f32[1,8,8]{{2,1,0}} bitcast(%sum)
  ROOT %new = f32[4,8,8]{{2,1,0}} dynamic-update-slice(%p.2, %part, %p.3, %zero, %zero)
}}

%cond (s.0: (f32[4,8,8], f32[8,8], f32[4,8,8], u32[], u32[])) -> pred[] {{
  %limit = u32[] constant(4)
  %s.0 = (f32[4,8,8], f32[8,8], f32[4,8,8], u32[], u32[]) parameter(0)
  %i.0 = u32[] get-tuple-element(%s.0), index=3
  ROOT %less = pred[] compare(%i.0, %limit), direction={direction}
}}

%body (s.1: (f32[4,8,8], f32[8,8], f32[4,8,8], u32[], u32[])) -> (f32[4,8,8], u32[]) {{
  %s.1 = (f32[4,8,8], f32[8,8], f32[4,8,8], u32[], u32[]) parameter(0)
  %stack = f32[4,8,8]{{2,1,0}} get-tuple-element(%s.1), index=0
  %x = f32[8,8]{{1,0}} get-tuple-element(%s.1), index=1
  %out = f32[4,8,8]{{2,1,0}} get-tuple-element(%s.1), index=2
  %i.1 = u32[] get-tuple-element(%s.1), index=3
  %increment = u32[] get-tuple-element(%s.1), index=4
  %next = u32[] add(%i.1, %increment)
  %new.1 = f32[4,8,8]{{2,1,0}} fusion(%stack, %x, %out, %i.1), calls=%select
  %all = f32[8,8]{{1,0}} all-gather(%x), replica_groups={{{{0,1}}}}, channel_id=1
  ROOT %state = (f32[4,8,8], f32[8,8], f32[4,8,8], u32[], u32[]) tuple(%stack, %all, \
%new.1, %next, %increment)
}}

ENTRY %main (a: f32[4,8,8], b: f32[8,8]) -> f32[4,8,8] {{
  %a = f32[4,8,8]{{2,1,0}} parameter(0)
  %b = f32[8,8]{{1,0}} parameter(1)
  %start = u32[] constant(0)
  %step = u32[] constant({step})
  %first = (f32[4,8,8], f32[8,8], f32[4,8,8], u32[], u32[]) tuple(%a, %b, %a, %start, \
%step)
  %loop = (f32[4,8,8], f32[8,8], f32[4,8,8], u32[], u32[]) while(%first), \
condition=%cond, body=%body
  ROOT %result = f32[4,8,8]{{2,1,0}} get-tuple-element(%loop), index=2
}}
"""


@pytest.mark.parametrize(("step", "num_rounds"), [(1, 4), (2, 2), (3, 2)])
def test_reads_the_length_of_a_loop_from_its_condition(step, num_rounds):
    program = Program(LOOP.format(step=step, direction="LT"))
    assert program.are_loop_lengths_known() == [True]
    (gather,) = program.collectives(2)
    assert (gather.num_runs, gather.bytes) == (num_rounds, num_rounds * 4 * 64)


def test_a_loop_with_another_condition_has_an_unknown_length():
    program = Program(LOOP.format(step=1, direction="NE"))
    assert program.are_loop_lengths_known() == [False]
    assert program.collectives(2)[0].num_runs == 1


def test_counts_the_operands_of_an_asynchronous_reduction():
    text = """HloModule jit_step

ENTRY %main (a: bf16[8,4]) -> bf16[1,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %start = (bf16[8,4]{1,0}, bf16[1,4]{1,0}) reduce-scatter-start(%a), channel_id=1
  ROOT %done = bf16[1,4]{1,0} reduce-scatter-done(%start)
}
"""
    (scatter,) = Program(text).collectives(8)
    assert (scatter.bytes, scatter.sent) == (64, 64 * 7 / 8)


def test_counts_the_selected_parts_of_stacks_as_traffic():
    program = Program(LOOP.format(step=1, direction="LT"))
    kernels, num_bytes = program.traffic()
    layer = 4 * 64
    # The fusion reads a layer, x and the counter, and writes a layer; the all-gather
    # reads and writes x; the addition and the comparison have results of a few bytes.
    expected = 4 * (3 * layer + 2 * layer)
    assert kernels == 4 * 4
    assert 0 < num_bytes - expected <= 4 * 32
