"""Spills are found in the loops of AMD's assembly, whatever order the compiler laid the code out in."""

import pytest
from td_pack.tests.support.amdgcn import amd_loop, count_spills, read_amdgcn

# The head of the loop (.LBB0_2) stands behind its body, which is how LLVM writes loops with a wait in the middle.
KERNEL = """
	.section	.text
kernel:                                 ; @kernel
; %bb.0:
	scratch_store_b32 off, v1, off      ; 4-byte Folded Spill
	v_writelane_b32 v9, s4, 0
	s_branch .LBB0_2
.LBB0_1:                                ;   in Loop: Header=BB0_2 Depth=1
	v_wmma_f32_16x16x16_bf16 v[0:7], v[8:15], v[16:23], v[0:7]
	{body}
	s_delay_alu instid0(VALU_DEP_1)
	s_cbranch_scc0 .LBB0_4
.LBB0_2:                                ; =>This Inner Loop Header: Depth=1
	s_cbranch_scc1 .LBB0_1
; %bb.3:
	s_branch .LBB0_1
.LBB0_4:
	scratch_load_b32 v1, off, off       ; 4-byte Folded Reload
	s_endpgm
	.section	.rodata
	.amdhsa_next_free_vgpr 256
"""


@pytest.mark.parametrize(
    "body, scalar_spills, spills",
    [
        ("buffer_load_b128 v[0:3], v4, s[0:3], 0 offen", 0, 0),
        ("scratch_load_b128 v[0:3], off, off offset:16", 0, 1),
        ("v_readlane_b32 s4, v9, 0", 0, 0),
        ("v_readlane_b32 s4, v9, 0", 3, 1),
    ],
)
def test_spills_count_inside_loops_only(body, scalar_spills, spills):
    code = read_amdgcn(KERNEL.replace("{body}", body))
    assert len(code) == 11
    assert [instruction.opcode for instruction in amd_loop(code)] == [
        "v_wmma_f32_16x16x16_bf16",
        body.split()[0],
        "s_cbranch_scc0",
        "s_cbranch_scc1",
        "s_branch",
    ]
    assert count_spills(code, scalar_spills) == spills


def test_without_a_loop_all_of_the_kernel_counts():
    code = read_amdgcn("kernel:\n\tscratch_load_b32 v1, off, off\n\ts_endpgm\n\ts_code_end\n")
    assert count_spills(code, 0) == 1 and len(code) == 2
