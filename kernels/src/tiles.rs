//! AMX's tiles: eight of at most 16 rows of 64 bytes.

use std::arch::asm;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Bytes of a tile's row.
pub(crate) const BYTES: usize = 64;

/// Whether the processor has AMX for 8-bit integers and bfloat16, and the system lets this process use it.
pub(crate) fn is_permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};

        /// Bits of leaf 7's EDX (Intel's manual, CPUID): AMX-BF16, AMX-TILE and AMX-INT8.
        const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        /// Asks for the use of a state component (Linux, `arch/x86/include/uapi/asm/prctl.h`).
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        /// The tiles' component.
        const XFEATURE_XTILEDATA: i64 = 18;
        let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & FEATURES == FEATURES;
        // SAFETY: the call takes two numbers; systems that do not know it refuse it.
        has && 0
            == unsafe {
                libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
            }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The shapes of the tiles (Intel's manual, LDTILECFG).
#[repr(C, align(64))]
pub(crate) struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row.
    columns: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    /// 0 to 3 are sums, 4 and 5 inputs of `depth` bytes a row, 6 and 7 weights of `depth / 4` rows.
    pub(crate) fn new(depth: usize) -> Self {
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            columns: [0; 16],
            rows: [0; 16],
        };
        for tile in 0..8 {
            let is_input = tile == 4 || tile == 5;
            configuration.columns[tile] = if is_input { depth } else { BYTES } as u16;
            configuration.rows[tile] = if tile < 6 { ROWS } else { depth / 4 } as u8;
        }
        configuration
    }

    pub(crate) fn load(&self) {
        // SAFETY: the shapes are within a tile's.
        unsafe { asm!("ldtilecfg [{}]", in(reg) self, options(readonly, nostack)) };
    }
}

/// Forgets the tiles, which makes this thread cheaper to switch away from.
pub(crate) fn release() {
    // SAFETY: nobody reads them after that.
    unsafe {
        asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nomem, nostack))
    };
}
