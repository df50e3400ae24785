//! What this machine can do at most, by loops that do nothing else: reading memory, and products of registers, of the
//! same instructions as the kernels' (`LOWBIT_SIMD` restricts both).

use crate::table::Bound;
use lowbit::kernel::packed::path::{Path, path};
use lowbit::kernel::simd::{Level, level, prefetch};
use rayon::ThreadPool;
use std::hint::black_box;
use std::time::Instant;

/// Bytes that are read for the table's head: memory, not a cache.
const BUFFER: usize = 256 << 20;
/// Bytes that are read at least, in as many passes as it takes.
const READ: usize = 64 << 20;
/// Bytes that are asked for ahead of their use.
const AHEAD: usize = 512;
/// Passes over the loops of a product, some tens of milliseconds.
const ROUNDS: usize = 2_000_000;
/// Each is measured for so many seconds; the best try counts. A large cache takes many passes to fill.
const TRIED: f64 = 0.3;

/// Bytes and operations a second, of all threads of a pool together.
#[derive(Clone, Copy)]
pub struct Ceilings {
    /// Bytes read from memory.
    pub memory: f64,
    /// Operations of the widest vectors of f32.
    pub float: f64,
    /// Operations on bf16 operands: tiles where there are some, else vectors of pairs, else of f32.
    pub bf16: f64,
    /// Operations on integers of 8 bits.
    pub int8: f64,
}

impl Ceilings {
    /// Names, with the bound of which each is the ceiling.
    pub const EACH: [(&str, Bound); 4] = [
        ("memory read", Bound::Bytes(0)),
        ("f32 products in registers", Bound::Float(0)),
        ("bf16 products in registers", Bound::Bf16(0)),
        ("int8 products in registers", Bound::Int8(0)),
    ];

    /// Measures all on the threads of a pool.
    pub fn measure(pool: &ThreadPool) -> Self {
        let memory = reading(pool, BUFFER);
        let float = match level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has the instructions.
            Level::Avx512 => best(pool, ROUNDS * 16 * 16 * 2, |_| unsafe { x86::fma_512(ROUNDS) }),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 => best(pool, ROUNDS * 12 * 8 * 2, |_| unsafe { x86::fma_256(ROUNDS) }),
            _ => best(pool, ROUNDS * 32 * 2, |_| portable(ROUNDS)),
        };
        let (mut bf16, mut int8) = (float, float);
        #[cfg(target_arch = "x86_64")]
        {
            use lowbit::kernel::{amx, vectors};
            let rounds = ROUNDS / 20;
            // SAFETY: in each case the condition says that the processor has the instructions, and tiles are permitted.
            unsafe {
                if amx::has_bf16() {
                    bf16 = best(pool, rounds * 4 * 16 * 16 * 32 * 2, |_| x86::tiles_bf16(rounds));
                } else if vectors::pairs_pay() {
                    bf16 = best(pool, ROUNDS * 16 * 32 * 2, |_| x86::pairs(ROUNDS));
                }
                match path() {
                    Path::Portable => {}
                    Path::Avx2 => int8 = best(pool, ROUNDS * 12 * 16 * 2, |_| x86::madd(ROUNDS)),
                    Path::AvxVnni => int8 = best(pool, ROUNDS * 12 * 32 * 2, |_| x86::avx_vnni(ROUNDS)),
                    Path::Vnni => int8 = best(pool, ROUNDS * 16 * 64 * 2, |_| x86::vnni(ROUNDS)),
                    Path::Amx => {
                        int8 = best(pool, rounds * 4 * 16 * 16 * 64 * 2, |_| x86::tiles_int8(rounds));
                    }
                }
            }
        }
        Self { memory, float, bf16, int8 }
    }
}

/// Bytes a second when so many are read again and again: from memory, or from the cache that holds them.
pub fn reading(pool: &ThreadPool, bytes: usize) -> f64 {
    let threads = pool.current_num_threads();
    let buffer = vec![1u64; bytes.div_ceil(8).next_multiple_of(threads)];
    let (each, passes) = (buffer.len() / threads, READ.div_ceil(bytes));
    best(pool, passes * each * 8, |thread| {
        for _ in 0..passes {
            black_box(read(black_box(&buffer[thread * each..][..each])));
        }
    })
}

/// The best rate, where every thread does `amount` of something.
fn best(pool: &ThreadPool, amount: usize, run: impl Fn(usize) + Sync) -> f64 {
    let (mut best, begin) = (0.0f64, Instant::now());
    while begin.elapsed().as_secs_f64() < TRIED {
        let clock = Instant::now();
        pool.broadcast(|thread| run(thread.index()));
        best = best.max((amount * pool.current_num_threads()) as f64 / clock.elapsed().as_secs_f64());
    }
    best
}

/// Reads everything, in four streams as the kernels do.
fn read(data: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: the level says that the processor has the instructions.
        return unsafe { x86::read_512(data) };
    }
    read_body(data)
}

#[inline(always)]
fn read_body(data: &[u64]) -> u64 {
    let quarter = data.len() / 4;
    let mut sums = [0u64; 32];
    for at in (0..quarter / 8 * 8).step_by(8) {
        for stream in 0..4 {
            let line = &data[stream * quarter + at..][..8];
            prefetch(line, AHEAD / 8);
            for (sum, value) in sums[stream * 8..][..8].iter_mut().zip(line) {
                *sum ^= value;
            }
        }
    }
    sums.into_iter().fold(0, |all, sum| all ^ sum)
}

/// Products and sums of 32 values, in the vectors that the compiler takes.
fn portable(rounds: usize) {
    let (a, b, mut sums) = (black_box(0.999f32), black_box(1e-3f32), [0.0f32; 32]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * a + b;
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::black_box;
    use lowbit::kernel::amx::{Config, Tiles};
    use std::arch::asm;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn read_512(data: &[u64]) -> u64 {
        super::read_body(data)
    }

    /// Declares a loop of one instruction on so many independent sums.
    macro_rules! products {
        ($name:ident, $feature:literal, $count:literal, $start:expr, $value:expr, $step:expr) => {
            #[target_feature(enable = $feature)]
            pub fn $name(rounds: usize) {
                let (a, mut sums) = (black_box($value), [$start; $count]);
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = $step(*sum, a);
                    }
                }
                black_box(sums);
            }
        };
    }
    products!(fma_512, "avx512f", 16, _mm512_setzero_ps(), _mm512_set1_ps(0.5), |sum, a| _mm512_fmadd_ps(
        sum, a, a
    ));
    products!(fma_256, "avx2,fma", 12, _mm256_setzero_ps(), _mm256_set1_ps(0.5), |sum, a| _mm256_fmadd_ps(
        sum, a, a
    ));
    products!(vnni, "avx512f,avx512vnni", 16, _mm512_setzero_si512(), _mm512_set1_epi8(1), |sum, a| {
        _mm512_dpbusd_epi32(sum, a, a)
    });
    products!(
        pairs,
        "avx512f,avx512bf16",
        16,
        _mm512_setzero_ps(),
        _mm512_set1_epi32(0x3f40_3f40),
        |sum, a| {
            // SAFETY: vectors of equal size, of any bits.
            let a = unsafe { std::mem::transmute::<__m512i, __m512bh>(a) };
            _mm512_dpbf16_ps(sum, a, a)
        }
    );
    products!(avx_vnni, "avx2,avxvnni", 12, _mm256_setzero_si256(), _mm256_set1_epi8(1), |sum, a| {
        _mm256_dpbusd_avx_epi32(sum, a, a)
    });
    products!(madd, "avx2", 12, _mm256_setzero_si256(), _mm256_set1_epi16(1), |sum, a| {
        _mm256_add_epi32(sum, _mm256_madd_epi16(sum, a))
    });

    /// Declares a loop of four independent products of tiles. They are of numbers: zeros take less power, and with it time.
    macro_rules! tiles {
        ($name:ident, $instruction:literal, $numbers:expr) => {
            /// # Safety
            /// The processor has the instruction, and the system permits tiles.
            pub unsafe fn $name(rounds: usize) {
                let _tiles = Tiles::load(&Config::FULL);
                let numbers: [u16; 512] = std::array::from_fn($numbers);
                // SAFETY: the caller's promise; tiles of 1024 bytes are read from as many, into registers that are this
                // thread's for now.
                unsafe {
                    asm!(
                        "tileloadd tmm4, [{numbers} + {row}*1]",
                        "tileloadd tmm5, [{numbers} + {row}*1]",
                        "tileloadd tmm6, [{numbers} + {row}*1]",
                        "tileloadd tmm7, [{numbers} + {row}*1]",
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "2:",
                        concat!($instruction, " tmm0, tmm4, tmm6"),
                        concat!($instruction, " tmm1, tmm4, tmm7"),
                        concat!($instruction, " tmm2, tmm5, tmm6"),
                        concat!($instruction, " tmm3, tmm5, tmm7"),
                        "dec {rounds}",
                        "jnz 2b",
                        rounds = inout(reg) rounds => _,
                        numbers = in(reg) numbers.as_ptr(),
                        row = in(reg) 64usize,
                        options(nostack, readonly),
                    );
                }
            }
        };
    }
    // Of both signs: between 1 and 2 as bf16, all bytes as integers.
    tiles!(tiles_bf16, "tdpbf16ps", |i| 0x3f80 | ((i as u16 * 37) & 0x7f) | ((i as u16 & 1) << 15));
    tiles!(tiles_int8, "tdpbsud", |i| i as u16 * 40_503);
}
