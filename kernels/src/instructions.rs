//! Which instructions of the processor the kernels use.

use std::{fmt, str::FromStr, sync::LazyLock};

/// A set of instructions with kernels of its own, the plainest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Instructions {
    /// Plain Rust, which runs everywhere and says what the others compute.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX2 with FMA and AVX-VNNI, whose sums of four products are one instruction.
    AvxVnni,
    /// AVX-512 (F, BW, VL, DQ) with VNNI.
    Avx512Vnni,
    /// AVX-512 with VNNI and bfloat16, and AMX's tiles of both for many rows.
    Amx,
}

impl Instructions {
    /// All of them.
    pub const ALL: [Instructions; 5] = [
        Instructions::Portable,
        Instructions::Avx2,
        Instructions::AvxVnni,
        Instructions::Avx512Vnni,
        Instructions::Amx,
    ];

    /// The best that this processor and its operating system have.
    pub fn best() -> Self {
        static BEST: LazyLock<Instructions> = LazyLock::new(|| {
            let mut all = Instructions::ALL.into_iter().rev();
            all.find(|instructions| instructions.are_available()).unwrap_or(Instructions::Portable)
        });
        *BEST
    }

    /// Whether this processor and its operating system have them.
    pub fn are_available(self) -> bool {
        static AVAILABLE: LazyLock<[bool; 5]> = LazyLock::new(|| Instructions::ALL.map(detect));
        AVAILABLE[self as usize]
    }

    /// The name, as [`FromStr`] takes it.
    pub fn name(self) -> &'static str {
        match self {
            Instructions::Portable => "portable",
            Instructions::Avx2 => "avx2",
            Instructions::AvxVnni => "avx-vnni",
            Instructions::Avx512Vnni => "avx512-vnni",
            Instructions::Amx => "amx",
        }
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of [`Instructions`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownInstructions(String);

impl fmt::Display for UnknownInstructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Instructions::ALL.map(Instructions::name).join(", ");
        write!(f, "there are no kernels for '{}'; use {known}", self.0)
    }
}

impl std::error::Error for UnknownInstructions {}

impl FromStr for Instructions {
    type Err = UnknownInstructions;

    fn from_str(name: &str) -> Result<Self, UnknownInstructions> {
        let mut all = Instructions::ALL.into_iter();
        all.find(|known| known.name() == name).ok_or_else(|| UnknownInstructions(name.to_owned()))
    }
}

#[cfg(target_arch = "x86_64")]
fn detect(instructions: Instructions) -> bool {
    let has_avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let has_avx512 = || {
        has_avx2()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
    };
    match instructions {
        Instructions::Portable => true,
        Instructions::Avx2 => has_avx2(),
        Instructions::AvxVnni => has_avx2() && is_x86_feature_detected!("avxvnni"),
        Instructions::Avx512Vnni => has_avx512(),
        Instructions::Amx => {
            has_avx512() && is_x86_feature_detected!("avx512bf16") && crate::tiles::is_permitted()
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect(instructions: Instructions) -> bool {
    instructions == Instructions::Portable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for instructions in Instructions::ALL {
            assert_eq!(instructions.name().parse(), Ok(instructions));
        }
        let error = "sse".parse::<Instructions>().unwrap_err().to_string();
        assert!(error.contains("use portable, avx2"), "{error}");
        assert!(Instructions::Portable.are_available());
        assert!(Instructions::best().are_available());
    }
}
