"""Seconds and floating-point operations of programs, against what they are by hand."""

import functools

import jax
import jax.numpy as jnp
import plan_closed_forms as by_hand
import pytest

from clp_jax.algorithm import subset
from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.decoding import Decoding
from clp_jax.planning import estimate, flops, topology

# ---- Seconds -----------------------------------------------------------------------------------

HLO = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %inner = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"7000000"}
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %one = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"10"}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %one)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %s.1 = (s32[], f32[8]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%outer_body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]{0}) while(%s), condition=%condition, body=%body
  ROOT %c = f32[8]{0} copy(%y), backend_config={"estimated_cycles":"100"}
}

%outer_condition (s: (s32[], f32[8])) -> pred[] {
  ROOT %less.1 = pred[] compare(%i, %j), direction=LT
}

%cheap (p: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"1"}
}

%dear (p: f32[8]) -> f32[8] {
  ROOT %b = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"1000"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0:T(256)} parameter(0)
  %w.1 = (s32[], f32[8]{0}) while(%p.1), condition=%outer_condition, body=%outer_body, \
backend_config={"known_trip_count":{"n":"3"}}
  %b.1 = f32[8]{0} conditional(%k, %p.1, %p.1), true_computation=%cheap, false_computation=%dear
  %b.2 = f32[8]{0} conditional(%k, %p.1, %p.1), branch_computations={%cheap, %dear}
  %d = f32[8]{0} call(%p.1), to_apply=%cheap
LINES
  ROOT %r = f32[8]{0} add(%p.1, %p.1), metadata={op_name="while("}
}
"""


def work(*lines, chips=16):
    made = HLO.replace("LINES", "\n".join(f"  %l{i} = {line}" for i, line in enumerate(lines)))
    return estimate.read(made, chips)


def test_cycles_of_loops_branches_calls_and_fusions():
    found = work()
    assert found.work == estimate.Work(cycles=3 * (5 * 10 + 100) + 1000 + 1000 + 1)
    (loop,) = found.loops
    assert (loop.steps, loop.body.cycles) == (3, 150)
    assert found.work.compute_seconds(topology.V5E) == pytest.approx(2451 / 1.5e9)


MIB = "f32[1024,256]{1,0:T(8,128)}"
SIZE = 2**20


@pytest.mark.parametrize(
    ("line", "sent", "hops"),
    [
        (f"{MIB} all-reduce(%x), replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}", 3, 4),
        (f"({MIB}, /*index=1*/{MIB}) all-reduce(%x, %y), replica_groups=[2,2]<=[4]", 4, 2),
        (f"{MIB} all-reduce(%x), replica_groups=mesh['a'=4,'b'=4] {{'a'}}", 3, 4),
        (
            f"{MIB} all-reduce-start(%x), replica_groups=mesh['a'=4,'b'=1,'c'=2],"
            " device_ids=([4,2]T(1,0)) {'a','c'}",
            2 * 2 * 7 / 8,
            8,
        ),
        # The whole slice is a ring, and so are 16 chips of it.
        (f"{MIB} all-reduce(%x), channel_id=1, to_apply=%add", 2 * 15 / 16, 12),
        (f"{MIB} all-reduce(%x), replica_groups=[1,16]<=[16]", 2 * 15 / 16, 12),
        (f"{MIB} all-reduce(%x), replica_groups={{{{0}},{{1}}}}", 0, 0),
        (f"{MIB} all-gather(%x), replica_groups=[4,4]<=[16], dimensions={{0}}", 1.5, 2),
        (f"(f32[256,256], {MIB}) all-gather-start(%x), replica_groups=[4,4]<=[16]", 1.5, 2),
        (f"f32[256,256] reduce-scatter(%x), replica_groups=[4,4]<=[16]", 1.5, 2),  # noqa: F541
        (f"{MIB} collective-permute(%x), source_target_pairs={{{{0,1}}}}", 1, 1),
        (f"({MIB}, {MIB}) collective-permute-start(%x)", 1, 1),
        (f"{MIB} all-reduce-done(%x)", 0, 0),
    ],
)
def test_bytes_that_go_to_other_chips(line, sent, hops):
    with_it, without = work(line).work, work().work
    assert with_it.sent == pytest.approx(sent * SIZE)
    assert (with_it.hops, with_it.cycles) == (hops, without.cycles)
    seconds = with_it.communication_seconds(topology.V5E)
    assert seconds == pytest.approx(sent * SIZE / 90e9 + hops * 1e-6)


@pytest.mark.parametrize(
    ("line", "copied"),
    [
        ("(bf16[1024]{0:S(1)}, bf16[1024]{0}, u32[]{:S(2)}) copy-start(%x)", 2048),
        ("((f32[4096]{0}), f32[1024]{0:S(1)}, s32[]{:T(128)}) slice-start(%x)", 4096),
        ("bf16[1024]{0} copy-done(%x)", 0),
    ],
)
def test_bytes_that_are_copied_beside_the_computation(line, copied):
    assert work(line).work.copied == copied


def test_a_collective_in_several_fusions_counts_once():
    """As the compiler spreads it over what is computed meanwhile."""
    fused = """
%spread.NUMBER (q: f32[256,256]) -> f32[1024,256] {
  ROOT %g = f32[1024,256]{1,0} all-gather(%q), channel_id=7, replica_groups=[4,4]<=[16], \
backend_config={"estimated_cycles":"1"}
}
"""
    fusion = "  %f.NUMBER = f32[1024,256]{1,0} fusion(%q), kind=kCustom, calls=%spread.NUMBER\n"
    twice = [text.replace("NUMBER", number) for text in (fused, fusion) for number in "12"]
    text = HLO.replace("%cheap (", twice[0] + twice[1] + "\n%cheap (", 1)
    found = estimate.read(text.replace("LINES\n", twice[2] + twice[3]), 16).work
    assert found.sent == 1.5 * SIZE
    assert found.cycles == work().work.cycles


def test_a_collective_beside_a_loop_counts_once():
    """The loop carries its buffers, so that it is in the body's text again."""
    gather = f"%g = {MIB} all-gather(%x), channel_id=7, replica_groups=[1,16]<=[16]"
    inner = gather.replace("=7", "=8")
    text = HLO.replace("  %one =", f"  {gather}\n  {inner}\n  %one =").replace(
        "LINES", f"  {gather}"
    )
    found = estimate.read(text, 16)
    # That of channel 8 is the inner loop's own: 3 times 5.
    assert found.work.sent == (1 + 3 * 5) * 15 / 16 * SIZE
    assert found.loops[0].body.sent == 5 * 15 / 16 * SIZE


def test_several_collectives_of_one_channel_count_each():
    line = f"{MIB} all-to-all(%x), channel_id=5, replica_groups=[1,16]<=[16]"
    assert work(line, line).work.sent == 2 * 15 / 16 * SIZE


def test_no_program_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        estimate.read("HloModule nothing", 1)


def test_the_slowest_of_cycles_copies_and_products_counts():
    chip = topology.V5E
    some = estimate.Work(cycles=1500, copied=819e3)
    assert some.compute_seconds(chip) == pytest.approx(1e-6)
    assert some.compute_seconds(chip, flops=197e9) == pytest.approx(1e-3)
    assert estimate.Work(copied=819e6).compute_seconds(chip) == pytest.approx(1e-3)


# ---- Matrix products ---------------------------------------------------------------------------


def struct(shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(("batch", "prompt", "length"), [(4, 6, 5), (2, 7, 3)])
def test_the_products_of_a_step_are_those_of_a_t5(module, reference, batch, prompt, length):
    clp = clp_step.CLP(module, Decoding(length))
    state = jax.eval_shape(
        lambda r: clp_step.init_train_state(clp, r, subset.attention(), 2), reference
    )
    weighting = Weighting(struct((1,), jnp.float32), struct((1, 2), jnp.float32))
    key = jax.eval_shape(lambda: jax.random.key(0))
    prompts, rewards = struct((batch, prompt)), struct((batch, 2), jnp.float32)

    def counted(function, *arguments):
        program = jax.jit(functools.partial(function, clp))
        made = jax.eval_shape(program, *arguments)
        return flops.of_program(program.trace(*arguments).jaxpr), made

    sampling = (state.params, reference, prompts, weighting, key)
    generate, rollout = counted(clp_step.generate, *sampling)
    score, scored = counted(clp_step.score, reference, rollout)
    update, _ = counted(clp_step.update, state, reference, scored, rewards, weighting, key)
    sizes = (module.config, batch, prompt, length)
    assert generate == by_hand.generate(*sizes)
    assert score == by_hand.score(*sizes)
    assert update == by_hand.update(*sizes)


def test_products_in_loops_and_branches():
    square = jnp.ones((8, 8))

    def looped(x):
        x, _ = jax.lax.scan(lambda x, _: (x @ x, None), x, length=3)
        x = jax.lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] @ s[1]), (0, x))[1]
        _ = x @ x  # no result depends on it
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

    assert flops.of_program(jax.jit(looped).trace(square).jaxpr) == (3 + 5 + 2) * 2 * 8**3
