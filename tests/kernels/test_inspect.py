"""The inspection holds for every kernel, and each of its rules can fail.

Compiling takes seconds a kernel, so the results stay in pytest's cache, where Triton finds them by the source of the
kernels; sm_90 is looked at here, the other architectures by `make inspect`.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from kernels.cli import main
from kernels.workshop.accesses import narrow_accesses
from kernels.workshop.cases import Case
from kernels.workshop.inspection import _few_rows, _read, architecture_of
from tests.conftest import ROOT


def test_every_kernel_keeps_the_rules_and_every_rule_can_be_broken(request: pytest.FixtureRequest):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(request.config.cache.mkdir("triton"))  # pyright: ignore[reportOptionalMemberAccess]
    program = "from tests.kernels.spoiled import report; report()"
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert found["registered"]["broken"] == []
    assert found["registered"]["status"] == 0
    assert found["spoiled"]["status"] == 1
    complaints = (
        "spoiled.spills, sm_90, spoiled: spills",
        "spoiled.narrow, sm_90, spoiled: narrow accesses: spoiled.py:LINE loads 2 bytes at a time, and 16 are possible",
        "spoiled.product, sm_90, spoiled: shared memory: 256 KB, and a program has 227 KB",
        "spoiled.product, sm_90, spoiled: shared memory: 128 KB, and a default must run where there are 99 KB",
        "spoiled.product, sm_90, spoiled: tensor cores",
        "launches.toml: spoiled, NVIDIA H200, bfloat16, {'columns': 8192}: no timed shape",
    )
    for line, complaint in zip(found["spoiled"]["broken"], complaints, strict=True):
        assert re.sub(r"\.py:\d+", ".py:LINE", line).startswith(complaint)
    measured = [x for x in found["spoiled"]["launches"] if x["device"]]
    assert [(x["device"], x["tiles"], x["num_warps"]) for x in measured] == [("NVIDIA H200", {"TILE": 2048}, 8)]


def test_under_the_interpreter_nothing_is_inspected(capsys: pytest.CaptureFixture):
    assert main(["inspect"]) == 2
    assert capsys.readouterr().err == (
        "error: TRITON_INTERPRET is set, and the interpreter compiles nothing: unset it for inspect\n"
    )


def test_machine_code_is_read_by_the_width_of_its_accesses():
    text = """
  REG:40 STACK:8 SHARED:0 LOCAL:0
        /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;   /* 0x0000000402047981 */
        /*0020*/              @!P0 LDG.E.U16 R4, desc[UR4][R2.64] ;            /* 0x0000000402047981 */
        /*0030*/                   LDGSTS.E.BYPASS.LTC128B.64 [R5], [R2.64] ;  /* 0x0000000402047981 */
        /*0040*/             @!UP1 UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ; /* 0x0000000402047981 */
        /*0050*/              @P0  STG.E desc[UR4][R2.64], R4 ;                /* 0x0000000402047981 */
        /*12340*/                  STG.E.ENL2.256 desc[UR4][R2.64], R4, R8 ;   /* 0x0000000402047981 */
        /*12350*/                  NOP ;                                       /* 0x0000000402047981 */
"""
    assert _read(text) == {
        "registers": 40,
        "stack": 8,
        "loads": {16: 1, 2: 1, 8: 1},
        "stores": {4: 1, 32: 1},
        "tensor_cores": {"UTCHMMA": 1},
        "instructions": 6,
    }


def test_a_narrow_access_is_found_by_its_line_and_a_small_tile_may_be_narrow():
    ttgir = """
#loc1 = loc("/here/a.py":7:2)
    %target = tt.load %1 : tensor<4x!tt.ptr<i64>, #slice> loc(#loc1)
    %x = tt.load %2, %mask : tensor<4x256x!tt.ptr<bf16>, #blocked> loc(#loc5)
    %w = ttg.async_copy_global_to_local %3, %4 : tensor<4x256x!tt.ptr<bf16>, #blocked> -> <4x256xbf16> loc(#loc3)
    tt.store %5, %6 : tensor<4x256x!tt.ptr<bf16>, #blocked> loc(#loc2)
#loc2 = loc("/here/a.py":9:4)
#loc3 = loc("/here/b.py":8:4)
#loc4 = loc("x"(#loc3))
#loc5 = loc(callsite(#loc6 at #loc1))
#loc6 = loc("/there/helper.py":3:4)
"""
    ptx = """
	.loc	1 7 2                         // a.py:7:2
	ld.global.b64 { %rd1 }, [ %rd2 + 0 ];
	.loc	2 3 4, function_name $L__info_string0, inlined_at 1 7 2  // helper.py:3:4 @[ a.py:7:2 ]
	@%p1 ld.global.L1::evict_first.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
	.loc	1 8 4                         // b.py:8:4
	cp.async.ca.shared.global [ %r54 + 0 ], [ %rd14 + 0 ], 0x4, %r22;
	cp.async.ca.shared.global [ %r55 + 0 ], [ %rd15 + 0 ], 0x4, %r22;
	.loc	1 9 4                         // a.py:9:4
	st.global.v4.b32 [ %rd7 + 0 ], { %r26, %r27, %r28, %r29 };
"""
    assert narrow_accesses(ttgir, ptx) == ["b.py:8 loads 4 bytes at a time, and 16 are possible"]


def test_rows_are_cut_down_to_as_many_as_the_compiler_can_tell_apart():
    case = Case("real", {"N": 138_240, "M": 33_007, "P": 100, "F": 2048, "kind": "silu"})
    assert _few_rows(case).sizes == {"N": 256, "M": 256 + 15, "P": 100, "F": 2048, "kind": "silu"}


def test_a_device_whose_architecture_is_not_known_is_refused():
    assert architecture_of("NVIDIA GH200 480GB") == 90
    with pytest.raises(ValueError, match=r"NVIDIA T4: which architecture is it\? .* inspection.py"):
        architecture_of("NVIDIA T4")
