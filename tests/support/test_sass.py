"""The hottest loop is found whatever order the compiler laid the code out in."""

from td_pack.tests.support.sass import find_loops, hottest_loop, read_sass


def sass(*lines: str):
    return read_sass("\n".join(f"        /*{index * 16:04x}*/   {line} ;" for index, line in enumerate(lines)))


def test_hottest_loop_is_the_innermost_with_tensor_cores():
    code = sass(
        "S2R R1, SR_TID.X",  # 00
        "IADD3 R2, R2, 1, RZ",  # 10 the outer loop
        "LDL R4, [R1]",  # 20
        "NOP",  # 30 the inner loop
        "HMMA.16816.F32 R4, R4",  # 40
        "@!P1 BRA 0x30",  # 50
        "STL [R1], R4",  # 60
        "@P0 BRA 0x10",  # 70
        "EXIT",  # 80
        "BRA 0x90",  # 90 padding
    )
    assert [instruction.address for instruction in hottest_loop(code)] == [0x40, 0x50]


def test_jump_back_from_a_wait_behind_the_end_is_no_loop():
    code = sass(
        "S2R R1, SR_TID.X",  # 00
        "UTCHMMA gdesc[UR6], tmem[UR20]",  # 10 the loop
        "SYNCS.PHASECHK.TRYWAIT P4, [UR16]",  # 20
        "BRA.U !UP4, 0x60",  # 30
        "@!P0 BRA 0x10",  # 40
        "EXIT",  # 50
        "SYNCS.PHASECHK.TRYWAIT P4, [UR16]",  # 60 the wait, its own loop
        "@!P4 BRA 0x60",  # 70
        "BRA 0x40",  # 80
    )
    assert sorted([i.address for i in loop] for loop in find_loops(code)) == [
        [0x10, 0x20, 0x30, 0x40, 0x60, 0x70, 0x80],
        [0x60, 0x70],
    ]
    assert len(hottest_loop(code)) == 7


def test_code_without_a_loop_is_read_whole():
    code = sass("S2R R1, SR_TID.X", "NOP", "@P0 EXIT", "EXIT", "BRA 0x40", "NOP")
    assert not find_loops(code)
    assert [instruction.address for instruction in hottest_loop(code)] == [0x00, 0x20, 0x30]
