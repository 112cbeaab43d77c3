//! What the integer units give at most: multiplications of registers with registers.

use lfm2vl_kernels::Instructions;

use crate::in_threads;

/// Operations a second of all threads, two for each product; `None` where that was not written.
pub(crate) fn operations(instructions: Instructions, threads: usize) -> Option<f64> {
    let (work, operations) = loop_of(instructions)?;
    // SAFETY: the processor has the instructions, or they would not have been asked for.
    let seconds = in_threads(threads, || (), |()| unsafe { work() });
    Some(threads as f64 * operations / seconds)
}

const ROUNDS: usize = 2_000_000;

type Loop = unsafe fn();

#[cfg(not(target_arch = "x86_64"))]
fn loop_of(_: Instructions) -> Option<(Loop, f64)> {
    None
}

#[cfg(target_arch = "x86_64")]
fn loop_of(instructions: Instructions) -> Option<(Loop, f64)> {
    match instructions {
        Instructions::AvxVnni => Some((x86::avx_vnni, (ROUNDS * 12 * 32 * 2) as f64)),
        Instructions::Avx512Vnni => Some((x86::avx512_vnni, (ROUNDS * 24 * 64 * 2) as f64)),
        Instructions::Amx => Some((x86::amx, (ROUNDS * 4 * 16 * 16 * 64 * 2) as f64)),
        _ => None,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        arch::{asm, x86_64::*},
        hint::black_box,
    };

    use super::ROUNDS;

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) unsafe fn avx_vnni() {
        let mut sums = [_mm256_setzero_si256(); 12];
        let (a, b) = (_mm256_set1_epi8(3), _mm256_set1_epi8(-5));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
                // SAFETY: nothing; the compiler must not see through the loop.
                unsafe { asm!("/* {0} */", inout(ymm_reg) * sum, options(nomem, nostack)) };
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) unsafe fn avx512_vnni() {
        let mut sums = [_mm512_setzero_si512(); 24];
        let (a, b) = (_mm512_set1_epi8(3), _mm512_set1_epi8(-5));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
                // SAFETY: nothing; the compiler must not see through the loop.
                unsafe { asm!("/* {0} */", inout(zmm_reg) * sum, options(nomem, nostack)) };
            }
        }
        black_box(sums);
    }

    pub(super) unsafe fn amx() {
        // Palette 1: bytes of each tile's rows from byte 16 on, rows from byte 48 on.
        let mut configuration = [0u8; 64];
        configuration[0] = 1;
        for tile in 0..8 {
            configuration[16 + 2 * tile] = 64;
            configuration[48 + tile] = 16;
        }
        // SAFETY: whole tiles; nothing but tiles is written.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &configuration, options(readonly, nostack));
            for _ in 0..ROUNDS {
                asm!(
                    "tdpbssd tmm0, tmm4, tmm6", "tdpbssd tmm1, tmm5, tmm6",
                    "tdpbssd tmm2, tmm4, tmm7", "tdpbssd tmm3, tmm5, tmm7",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nomem, nostack)
                );
            }
            asm!("tilerelease", options(nomem, nostack));
        }
    }
}
