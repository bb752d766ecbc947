import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from diffsda_jax import collectives, sharding

HEAD = "HloModule jit_step, is_scheduled=true, num_partitions=16\n\n"
SUM = """%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

"""
ALL = "channel_id=1, replica_groups=[1,16]<=[16], use_global_device_ids=true, to_apply=%sum"


def parse(entry, others=""):
    """The collectives of an entry computation of these lines."""
    body = "\n".join(f"  {line}" for line in entry.strip().splitlines())
    return collectives.parse(f"{HEAD}{SUM}{others}ENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}")


@pytest.mark.parametrize(
    ("line", "kind", "payload", "group_size", "share"),
    [
        (
            f"%r = f32[512,12]{{1,0:T(8,128)S(1)}} all-reduce(%x), {ALL}",
            "all-reduce",
            24576,
            16,
            15 / 8,
        ),
        (
            "%r = (f32[8]{0:T(128)}, /*index=1*/bf16[4,2]{1,0:T(8,128)(2,1)}, pred[3]{0}) "
            "all-reduce(%x, %y, %z), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum",
            "all-reduce",
            32 + 16 + 3,
            4,
            3 / 2,
        ),
        (f"%r = f32[8]{{0}} all-reduce-start(%x), {ALL}", "all-reduce", 32, 16, 15 / 8),
        ("ROOT %r = f32[8]{0} all-reduce(%x), to_apply=%sum", "all-reduce", 32, 16, 15 / 8),
        (
            "%r = f32[8]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%sum",
            "all-reduce",
            32,
            1,
            0,
        ),
        (
            "%r = f32[64]{0} all-gather(%x), replica_groups=[2,8]<=[8,2]T(1,0), dimensions={0}",
            "all-gather",
            256,
            8,
            7 / 8,
        ),
        (
            "%r = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), replica_groups=[2,8]<=[16]",
            "all-gather",
            256,
            8,
            7 / 8,
        ),
        (
            "%r = ((f32[8]{0}, bf16[2]{0}), (f32[64]{0}, bf16[16]{0})) all-gather-start(%x, %y), "
            "replica_groups=[2,8]<=[16]",
            "all-gather",
            256 + 32,
            8,
            7 / 8,
        ),
        (
            "%r = f32[2,3]{1,0} reduce-scatter(%x), replica_groups=[4,4]<=[16], to_apply=%sum",
            "reduce-scatter",
            4 * 24,
            4,
            3 / 4,
        ),
        (
            "%r = (s8[4]{0}, s8[4]{0}) all-to-all(%x, %y), replica_groups={{0,1},{2,3}}",
            "all-to-all",
            8,
            2,
            1 / 2,
        ),
        (
            "%r = f32[8]{0} all-reduce(%x), channel_id=1, "
            "replica_groups=mesh['axis_0'=4,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}, a=1",
            "all-reduce",
            32,
            8,
            7 / 4,
        ),
        (
            "%r = f32[8]{0} all-reduce(%x), replica_groups=mesh['axis_0'=16] {'axis_0':(1)4}, a=1",
            "all-reduce",
            32,
            4,
            3 / 2,
        ),
        (
            "%r = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,2},{2,0}}",
            "collective-permute",
            32,
            2,
            1,
        ),
        (
            "%r = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), "
            "source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            32,
            2,
            1,
        ),
    ],
)
def test_one_line(line, kind, payload, group_size, share):
    (one,) = parse(line)
    assert (one.kind, one.payload, one.group_size) == (kind, payload, group_size)
    assert one.sent == pytest.approx(share * payload)
    assert one.runs == 1 and one.runs_known


def test_no_collectives_and_no_program():
    assert parse("%r = f32[8]{0} add(%x, %x)\n%d = f32[8]{0} all-reduce-done(%r)") == []
    with pytest.raises(ValueError, match="no ENTRY computation"):
        collectives.parse("the quick brown fox")


LOOPS = f"""%inner_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %one = s32[]{{:T(128)}} constant(1)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %next = s32[]{{:T(128)}} add(%i, %one)
  %r = f32[8]{{0}} all-reduce(%g), {ALL}
  ROOT %t = (s32[]{{:T(128)}}, f32[8]{{0}}) tuple(%next, %r)
}}

%inner_end (p: (s32[], f32[8])) -> pred[] {{
  %end = s32[]{{:T(128)}} constant(3)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{{:T(512)}} compare(%i, %end), direction=LT
}}

%outer_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %w = (s32[], f32[8]{{0}}) while(%p), condition=%inner_end, body=%inner_body
  %f = f32[8]{{0}} fusion(%g), kind=kCustom, calls=%inside
  %two = s32[]{{:T(128)}} constant(2)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %next = s32[]{{:T(128)}} add(%two, %i)
  ROOT %t = (s32[]{{:T(128)}}, /*index=1*/f32[8]{{0}}) tuple(%next, /*index=1*/%f)
}}

%inside (p: f32[8]) -> f32[16] {{
  ROOT %r = f32[16]{{0}} all-gather(%p), replica_groups=[8,2]<=[16], dimensions={{0}}
}}

%unknown_end (p: (s32[], f32[8])) -> pred[] {{
  ROOT %lt = pred[]{{:T(512)}} compare(%a, %b), direction=LT
}}

"""


def test_loops_multiply():
    noted = 'backend_config={"known_trip_count":{"n":"5"}}'
    loop = "%w = (s32[], f32[8]{0}) while(%x), condition=%inner_end, body=%outer_body"
    found = parse(f"{loop}, {noted}", LOOPS)
    assert {one.kind: one.runs for one in found} == {"all-reduce": 15, "all-gather": 5}
    total = collectives.totals(found)
    assert list(total) == ["all-reduce", "all-gather"]
    assert total["all-reduce"] == collectives.Total(1, 15, 15 * 32.0, 15 * 60.0)
    assert total["all-gather"] == collectives.Total(1, 5, 5 * 64.0, 5 * 32.0)
    by_two = parse(loop, LOOPS)  # from 0 to 3: twice
    assert {one.kind: one.runs for one in by_two} == {"all-reduce": 6, "all-gather": 2}
    unknown = parse(loop.replace("inner_end", "unknown_end"), LOOPS)
    assert {one.kind: one.runs for one in unknown} == {"all-reduce": 3, "all-gather": 1}
    assert not any(one.runs_known for one in unknown)


def test_conditions_count_the_branch_that_sends_most():
    branches = f"""%big (p: f32[8]) -> f32[8] {{
  ROOT %r = f32[8]{{0}} all-reduce(%p), {ALL}
}}

%small (p: f32[8]) -> f32[8] {{
  ROOT %r = f32[2]{{0}} all-reduce(%p), {ALL}
}}

"""
    line = "%c = f32[8]{0} conditional(%i, %x, %x), "
    for names in (
        "branch_computations={%small, %big}",
        "true_computation=%big, false_computation=%small",
    ):
        assert [one.payload for one in parse(line + names, branches)] == [32]


def test_asynchronous_calls_count_once():
    called = """%wrapped (p: f32[8]) -> f32[2] {
  ROOT %r = f32[2]{0} reduce-scatter(%p), replica_groups=[4,4]<=[16], to_apply=%sum
}

"""
    lines = """%s = ((f32[8]{0}), f32[2]{0}, u32[]{:S(2)}) async-start(%x), calls=%wrapped
%u = ((f32[8]{0}), f32[2]{0}, u32[]{:S(2)}) async-update(%s), calls=%wrapped
%d = f32[2]{0} async-done(%u), calls=%wrapped"""
    assert [one.payload for one in parse(lines, called)] == [32]


def test_the_compiler_for_tpus_writes_reduce_scatter_as_a_fusion():
    called = f"""%all-reduce-scatter.3 (p: f32[8]) -> f32[2] {{
  %r = f32[8]{{0}} all-reduce(%p), {ALL}
  ROOT %d = f32[2]{{0}} dynamic-slice(%r, %i), dynamic_slice_sizes={{2}}
}}

"""
    line = "%f = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3"
    (one,) = parse(line, called)
    assert (one.kind, one.payload, one.sent) == ("reduce-scatter", 32, 30)


def test_what_is_spread_over_several_instructions_counts_once():
    """Such a collective starts in one fusion, goes on in a loop, and ends in another fusion."""

    def part(name, channel):
        return f"""%{name} (p: f32[8]) -> f32[64] {{
  %r = f32[64]{{0}} all-gather(%p), channel_id={channel}, replica_groups=[2,8]<=[16], \
backend_config={{"async_collective_fusion_config":{{"flag_start":"2","flag_end":"8"}}}}
}}

"""

    parts = part("start", 7) + part("step", 7) + part("end", 7) + part("other", 8)
    body = "%body (p: f32[8]) -> f32[8] {\n  %f = f32[8]{0} fusion(%p), calls=%step\n}\n\n"
    lines = """%s = f32[8]{0} fusion(%x), calls=%start
%w = f32[8]{0} while(%s), body=%body, backend_config={"known_trip_count":{"n":"5"}}
%e = f32[8]{0} fusion(%w), calls=%end
%o = f32[8]{0} fusion(%x), calls=%other"""
    found = parse(lines, parts + body)
    assert [(one.payload, one.runs, one.channel) for one in found] == [(256, 1, "7"), (256, 1, "8")]


def compiled(function, out):
    """The collectives of a function of eight shards [4, 8] over eight CPU devices."""
    mesh = sharding.make_mesh()
    split = PartitionSpec(sharding.BATCH_AXES)
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=split,
        out_specs=split if out else PartitionSpec(),
        check_vma=False,
    )
    lowered = jax.jit(mapped).lower(jax.ShapeDtypeStruct((32, 8), jnp.float32))
    return collectives.parse(lowered.compile().as_text())


AXES = sharding.BATCH_AXES
SHARD = 4 * 8 * 4


def summed_in_turn(x):
    """Five sums, one after the other."""
    return lax.scan(lambda h, _: (lax.psum(jnp.sin(h), AXES), None), x, length=5)[0]


@pytest.mark.parametrize(
    ("function", "out", "kind", "payload", "runs", "sent"),
    [
        (lambda x: lax.psum(x, AXES), False, "all-reduce", SHARD, 1, SHARD * 7 / 4),
        (summed_in_turn, False, "all-reduce", 5 * SHARD, 5, 5 * SHARD * 7 / 4),
        (lambda x: lax.all_gather(x, AXES), False, "all-gather", 8 * SHARD, 1, 7 * SHARD),
        (
            functools.partial(lax.psum_scatter, axis_name=AXES, scatter_dimension=1, tiled=True),
            True,
            "reduce-scatter",
            SHARD,
            1,
            SHARD * 7 / 8,
        ),
        (
            functools.partial(
                lax.all_to_all, axis_name=AXES, split_axis=1, concat_axis=0, tiled=True
            ),
            True,
            "all-to-all",
            SHARD,
            1,
            SHARD * 7 / 8,
        ),
        (
            lambda x: lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]),
            True,
            "collective-permute",
            SHARD,
            1,
            SHARD,
        ),
    ],
)
def test_real_programs(function, out, kind, payload, runs, sent):
    """What eight devices exchange is known from the shapes."""
    total = collectives.totals(compiled(function, out))
    assert list(total) == [kind]
    assert (total[kind].payload, total[kind].runs, total[kind].sent) == (payload, runs, sent)
