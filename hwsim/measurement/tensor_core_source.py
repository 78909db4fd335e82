"""The CUDA program that asks a tensor core for single instructions, and its compilation.

One tile is one instruction (chained `steps` times along k): `mma.sync` computes 16 x 8 results in a warp, `wgmma` 64
x 8 in a
warpgroup. Every format packs k into 32 bytes a step (16 x 16 bit, 8 x 32 bit, 32 x 8 bit), so one fragment layout
serves all:
in words of 32 bits, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k..." and
"wgmma.m64nNk..."),
  A register r  row g + 8 (r mod 2),  word t + 4 (r div 2)          B register r  column g, word t + 4 r
  D register i  row g + 8 (i div 2),  column 2 t + (i mod 2)        as float16: register i holds columns 2 t, 2 t + 1
  of row g + 8 i
The same rows hold for each warp of a warpgroup, 16 rows further each. B of wgmma lies in shared memory without swizzle:
two core matrices (8 columns x 16 bytes of k, 128 bytes), so both offsets of its descriptor are 128.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

PTX_TYPE = {
    "float16": "f16",
    "bfloat16": "bf16",
    "tf32": "tf32",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
    "float32": "f32",
}
ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "tf32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1}
STEP_BYTES = 32  # of k in one instruction, for every format


@dataclass(frozen=True)
class Instruction:
    """One tensor-core instruction: `unit` mma or wgmma, operand format (both operands) and output format."""

    unit: str
    operand: str
    output: str

    @property
    def id(self) -> str:
        """Name as in `arithmetic.mac.named_mac`, without the chip: operand.output.unit."""
        return f"{self.operand}.{self.output}.{self.unit}"

    @property
    def terms(self) -> int:
        """Products that one instruction adds (its k)."""
        return STEP_BYTES // ELEMENT_BYTES[self.operand]

    @property
    def rows(self) -> int:
        """Rows of one tile."""
        return 64 if self.unit == "wgmma" else 16

    @property
    def ptx(self) -> str:
        """The instruction's name in PTX."""
        operand, output = PTX_TYPE[self.operand], PTX_TYPE[self.output]
        if self.unit == "wgmma":
            return f"wgmma.mma_async.sync.aligned.m64n8k{self.terms}.{output}.{operand}.{operand}"
        return f"mma.sync.aligned.m16n8k{self.terms}.row.col.{output}.{operand}.{operand}.{output}"


INSTRUCTIONS = tuple(
    Instruction(unit, operand, output)
    for unit in ("mma", "wgmma")
    for operand, outputs in (
        ("float16", ("float32", "float16")),
        ("bfloat16", ("float32",)),
        ("tf32", ("float32",)),
        ("float8_e4m3fn", ("float32", "float16")),
        ("float8_e5m2", ("float32", "float16")),
    )
    for output in outputs
)

_SOURCE = r"""
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <cuda_runtime.h>

constexpr int ROWS = @ROWS@;            // of one tile
constexpr int THREADS = 2 * ROWS;       // one warp per 16 rows
constexpr int REGISTERS = @REGISTERS@;  // of D in one thread: 4 floats, or 2 words of two halves
constexpr int WORDS = 2 * REGISTERS;    // of one row of D
typedef @ACCUMULATOR@ accumulator;

__device__ accumulator from_bits(uint32_t bits) { @FROM_BITS@ }
__device__ uint32_t to_bits(accumulator value) { @TO_BITS@ }

__global__ void multiply(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* d, int steps, int with_c) {
  const size_t tile = blockIdx.x;
  const int warp = threadIdx.x / 32, g = (threadIdx.x % 32) / 4, t = threadIdx.x % 4;
  accumulator x[REGISTERS];
  size_t place[REGISTERS];
  for (int i = 0; i < REGISTERS; ++i) {
    const int row = 16 * warp + g + 8 * (REGISTERS == 4 ? i / 2 : i);
    place[i] = (tile * ROWS + row) * WORDS + (REGISTERS == 4 ? 2 * t + i % 2 : t);
    x[i] = from_bits(with_c ? c[place[i]] : 0u);
  }
  for (int step = 0; step < steps; ++step) {
    const uint32_t* rows = a + ((tile * steps + step) * ROWS + 16 * warp) * 8;
    const uint32_t* columns = b + (tile * steps + step) * 64;
    const uint32_t a0 = rows[g * 8 + t], a1 = rows[(g + 8) * 8 + t];
    const uint32_t a2 = rows[g * 8 + t + 4], a3 = rows[(g + 8) * 8 + t + 4];
@BODY@
  }
  for (int i = 0; i < REGISTERS; ++i) d[place[i]] = to_bits(x[i]);
}

static void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    std::exit(3);
  }
}

int main(int count, char** names) {
  if (count != 3) return 2;
  FILE* in = std::fopen(names[1], "rb");
  int32_t head[3];  // tiles, steps, with_c
  if (!in || std::fread(head, 4, 3, in) != 3) return 2;
  const size_t tiles = head[0], steps = head[1];
  const size_t sizes[4] = {tiles * steps * ROWS * 8, tiles * steps * 64, tiles * ROWS * WORDS, tiles * ROWS * WORDS};
  uint32_t* device[4];
  for (int i = 0; i < 4; ++i) {
    std::vector<uint32_t> host(sizes[i], 0xdeadbeefu);
    if (i < 3 && std::fread(host.data(), 4, sizes[i], in) != sizes[i]) return 2;
    check(cudaMalloc(&device[i], sizes[i] * 4), "cudaMalloc");
    check(cudaMemcpy(device[i], host.data(), sizes[i] * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  std::fclose(in);
  multiply<<<(unsigned)tiles, THREADS>>>(device[0], device[1], device[2], device[3], (int)steps, head[2]);
  check(cudaGetLastError(), "launch");
  check(cudaDeviceSynchronize(), "kernel");
  std::vector<uint32_t> result(sizes[3]);
  check(cudaMemcpy(result.data(), device[3], sizes[3] * 4, cudaMemcpyDeviceToHost), "cudaMemcpy back");
  FILE* out = std::fopen(names[2], "wb");
  if (!out || std::fwrite(result.data(), 4, sizes[3], out) != sizes[3]) return 2;
  return std::fclose(out) ? 2 : 0;
}
"""

_MMA = r"""
    const uint32_t b0 = columns[g * 8 + t], b1 = columns[g * 8 + t + 4];
    asm volatile("@PTX@ {@D@}, {@A@}, {@B@}, {@D@};"
                 : @OUT@ : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));"""

_WGMMA = r"""
    __shared__ alignas(128) uint32_t shared[64];
    __syncthreads();
    // Core matrix h holds words 4 h .. 4 h + 3 of every column, 16 bytes a column.
    const int i = threadIdx.x;
    if (i < 64) shared[(i % 8 / 4) * 32 + i / 8 * 4 + i % 4] = columns[i];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const uint64_t address = __cvta_generic_to_shared(shared);
    const uint64_t descriptor = ((address & 0x3ffff) >> 4) | (uint64_t(128 >> 4) << 16) | (uint64_t(128 >> 4) << 32);
    const int add = step > 0 || with_c;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %@ADD@, 0; @PTX@ {@D@}, {@A@}, %@DESCRIPTOR@, p, 1, 1@TRANSPOSE@; }"
                 : @OUT@ : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(descriptor), "r"(add) : "memory");
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");"""


def source(instruction: Instruction) -> str:
    """Return the CUDA C++ program for one instruction."""
    registers = 2 if instruction.output == "float16" else 4
    names = [f"%{i}" for i in range(registers + 6)]
    half = registers == 2
    body = _WGMMA if instruction.unit == "wgmma" else _MMA
    text = _SOURCE.replace("@BODY@", body)
    values = {
        "ROWS": str(instruction.rows),
        "REGISTERS": str(registers),
        "ACCUMULATOR": "uint32_t" if half else "float",
        "FROM_BITS": "return bits;" if half else "return __uint_as_float(bits);",
        "TO_BITS": "return value;" if half else "return __float_as_uint(value);",
        "PTX": instruction.ptx,
        "D": ", ".join(names[:registers]),
        "A": ", ".join(names[registers : registers + 4]),
        "B": ", ".join(names[registers + 4 : registers + 6]),
        "DESCRIPTOR": str(registers + 4),
        "ADD": str(registers + 5),
        "OUT": ", ".join(f'"+{"r" if half else "f"}"(x[{i}])' for i in range(registers)),
        # only 16-bit operands may be transposed, so only they say that they are not
        "TRANSPOSE": ", 0" if ELEMENT_BYTES[instruction.operand] == 2 else "",
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def compile_program(
    instruction: Instruction, folder: Path, capability: str, timeout_s: float = 120
) -> tuple[Path | None, str]:
    """Compile the program for a device capability such as "9.0"; return its path, or None and the compiler's
    message."""
    architecture = capability.replace(".", "") + ("a" if capability == "9.0" else "")
    path, program = folder / f"{instruction.id}.cu", folder / instruction.id
    path.write_text(source(instruction), encoding="utf-8")
    command = [
        "nvcc",
        "-O1",
        f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
        "-o",
        str(program),
        str(path),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{type(error).__name__}: nvcc"
    if done.returncode:
        lines = [line.replace(str(folder), ".") for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return None, " | ".join(lines[:4])[:600]
    return program, ""
