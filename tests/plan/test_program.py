"""The reader of compiled programs: loops multiplied out, layouts not mistaken."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mixcon import ops
from mixcon.plan.program import read_program

TPU_TEXT = """
HloModule jit_f

%body.1 (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %moved = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} collective-permute(%x), channel_id=1, source_target_pairs={{0,1}}
  %sum = (f32[]{:T(128)}, f32[4]{0:T(128)}) all-reduce(%a, %b), replica_groups={}
  %begun = (f32[8]{0:T(256)}, f32[8]{0:T(256)}, u32[]{:S(2)}) collective-permute-start(%c), channel_id=2
  %ended = f32[8]{0:T(256)} collective-permute-done(%begun)
  ROOT %t = (s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%i, %moved), backend_config={"estimated_cycles":"100"}
}

%test.2 (p: (s32[], bf16[8,16])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

ENTRY %main (q: bf16[8,16]) -> bf16[8,16] {
  %while.1 = (s32[]{:T(128)}, bf16[8,16]{1,0}) while(%tuple), condition=%test.2, body=%body.1
  ROOT %out = f32[40,16]{1,0} fusion(%while.1), backend_config={"estimated_cycles":"7"}
}
"""


def test_reads_a_tpu_program():
    program = read_program(TPU_TEXT)
    assert program.collectives["collective-permute"] == {"count": 10, "bytes": 5 * (8 * 16 * 2 + 8 * 4)}
    assert program.collectives["all-reduce"] == {"count": 5, "bytes": 5 * (4 + 16)}
    assert program.largest == 40 * 16
    assert program.cycles == 5 * 100 + 7


def test_reads_the_ring_as_compiled_here():
    """Forward over four devices: the keys move four times, and nothing is gathered."""
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))

    def loss(q, k):
        return ops.contrastive_cross_entropy(q, k, impl="ring").rows.loss.mean()

    with jax.set_mesh(mesh):
        program = read_program(jax.jit(loss).lower(x, x).compile().as_text())
    moved = program.collectives["collective-permute"]
    assert moved["bytes"] >= 4 * 16 * 16 * 4
    assert moved["bytes"] <= 4 * (16 * 16 * 4 + 16 * 4) + 64
    assert "all-gather" not in program.collectives
